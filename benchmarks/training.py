"""A training step of the classifiers' networks."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from .measurement import Measurement, Settings, memory_in_turns, take_turns
from .networks import (
    OURS,
    SB,
    STATIC,
    build_cifar,
    last_features,
    others,
)

NCHW, NHWC = 'NCHW', 'channels_last'


def training_step(settings: Settings) -> Iterator[Measurement]:
    """Measure a training step of MobileNetV2 at ImageNet's size."""
    contenders = {**OURS, **others(settings.notes)}
    for width in (0.35,) if settings.tiny else (0.35, 1.0):
        for batch in (1,) if settings.tiny else (16, 32):
            for layout in (NCHW, NHWC):
                size = 64 if settings.tiny else 224
                case = dict(width=width, batch=batch, size=size, layout=layout)
                steps = {
                    name: step(make(width), batch, size, layout)
                    for name, make in contenders.items()
                }
                yield from take_turns(case, steps, settings.rounds)


def calls(settings: Settings) -> Iterator[Measurement]:
    """Measure a step on 32 pixels a side: little but the calls is left."""
    for width in (0.35,) if settings.tiny else (0.35, 1.0):
        for layout in (NCHW, NHWC):
            case = dict(width=width, batch=16, size=32, layout=layout)
            steps = {
                kind: step(make(width), 16, 32, layout)
                for kind, make in OURS.items()
            }
            yield from take_turns(case, steps, settings.rounds)


def cifar_step(settings: Settings) -> Iterator[Measurement]:
    """Measure a training step of the networks for CIFAR-10."""
    batch = 2 if settings.tiny else 128
    case = dict(width=0.35, batch=batch, size=32, layout=NCHW)
    steps = {
        kind: step(build_cifar(kind, 0.35), batch, 32, NCHW) for kind in OURS
    }
    yield from take_turns(case, steps, settings.rounds)


def training_memory(settings: Settings) -> Iterator[Measurement]:
    """Measure the peak of memory of two training steps."""
    batch, size = (1, 64) if settings.tiny else (32, 224)
    for width in (0.35,) if settings.tiny else (0.35, 1.0):
        case = dict(width=width, batch=batch, size=size, layout=NCHW)
        contenders = {
            kind: (two_steps, kind, width, batch, size)
            for kind in (STATIC, SB)
        }
        yield from memory_in_turns(case, contenders, min(3, settings.rounds))


def two_steps(
    kind: str, width: float, batch: int, size: int
) -> Callable[[], None]:
    """Return what takes two steps: the second keeps the optimizer's state."""
    once = step(OURS[kind](width), batch, size, NCHW)

    def twice() -> None:
        once()
        once()

    return twice


def step(
    network: nn.Module, batch: int, size: int, layout: str
) -> Callable[[], None]:
    """Return what takes one training step, with SGD as in our recipes."""
    images = torch.randn(batch, 3, size, size)
    if layout == NHWC:
        images = images.to(memory_format=torch.channels_last)
        network = network.to(memory_format=torch.channels_last)
    network.train()
    # The rate of 0 keeps the weights, so that every step is the same work.
    optimizer = torch.optim.SGD(network.parameters(), lr=0, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        features = last_features(network(images))
        features.mean((2, 3)).square().mean().backward()
        optimizer.step()

    return run
