"""The cost as the work grows: images, width, pixels."""

import copy
from collections.abc import Iterator

import torch

from sb_mm.deploy import fold

from .measurement import Measurement, Settings, take_turns
from .networks import OURS, build
from .training import NCHW, step

STEP, FOLDED = 'training step', 'inference, folded'
_BASE = dict(width=0.35, batch=16, size=224)
_AXES = dict(
    batch=(1, 2, 4, 8, 16, 32, 64),
    width=(0.35, 0.5, 0.75, 1.0),
    size=(160, 224, 320, 512),
)
_TINY = dict(width=0.35, batch=1, size=64)
_TINY_AXES = dict(batch=(1, 2), width=(0.35,), size=(64, 96))


def scaling(settings: Settings) -> Iterator[Measurement]:
    """Measure a step and a folded pass, along one axis at a time."""
    base, axes = (_TINY, _TINY_AXES) if settings.tiny else (_BASE, _AXES)
    for axis, values in axes.items():
        for value in values:
            work = {**base, axis: value}
            yield from _measure(axis, work, min(5, settings.rounds))


def _measure(axis: str, work: dict, rounds: int) -> Iterator[Measurement]:
    width, batch, size = work['width'], work['batch'], work['size']
    unit = 'ms per image'
    images = torch.randn(batch, 3, size, size)
    networks = {kind: build(kind, width) for kind in OURS}
    folded = {
        kind: fold(copy.deepcopy(net).eval()) for kind, net in networks.items()
    }
    passes = {
        kind: torch.inference_mode()(lambda n=net: n(images))
        for kind, net in folded.items()
    }
    case = dict(axis=axis, **work)
    yield from take_turns(
        dict(case, what=FOLDED), passes, rounds, 1e3 / batch, unit
    )
    steps = {
        kind: step(net, batch, size, NCHW) for kind, net in networks.items()
    }
    yield from take_turns(
        dict(case, what=STEP), steps, rounds, 1e3 / batch, unit
    )
