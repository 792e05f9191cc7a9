"""From torchvision's and timm's published weights to our backbones'."""

import io
from collections import Counter
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import UserInputError
from .files import check_writable, write_in_one_step
from .models.backbones import (
    AttentionMnasNet,
    AttentionMobileNetV2,
    AttentionShuffleNetV2,
)
from .models.backbones.base import AttentionBackbone
from .weights import load_checkpoint_file, state_dict_of

_BACKBONES = (AttentionMobileNetV2, AttentionMnasNet, AttentionShuffleNetV2)


@dataclass(frozen=True)
class Converted:
    """A classifier's weights under our names."""

    backbone: str
    widen_factor: float
    num_classes: int
    # `backbone.*` and `head.fc.*`, as mmpretrain's `ImageClassifier` has
    state_dict: dict[str, Tensor]


def convert(state: dict[str, Tensor], origin: str = 'It') -> Converted:
    """Rename the weights of a classifier of torchvision or timm.

    Their tensors come in the order of those of our static network of the same
    width. Each has to be of the same kind, such as ``running_var``, and of
    the same shape: nothing is missing, nothing is left over. Error messages
    call them ``origin``.

    Raises:
        UserInputError: If it is of no such network, or of a changed one.
    """
    forms = Counter(map(_form, state.items()))
    closest = max(
        (_network_like(state, backbone) for backbone in _BACKBONES),
        key=lambda c: (
            forms & Counter(map(_form, c.state_dict.items()))
        ).total(),
    )
    own = closest.state_dict
    nothing = ('nothing', torch.empty(0))
    for pair in zip_longest(state.items(), own.items(), fillvalue=nothing):
        if _form(pair[0]) != _form(pair[1]):
            given, wanted = (f'{name} {tuple(t.shape)}' for name, t in pair)
            raise UserInputError(
                f'{origin} comes closest to {closest.backbone} of '
                f'widen_factor={closest.widen_factor}, but has {given} in the '
                f"place of {wanted}: give the weights of torchvision's "
                "MobileNetV2, MNASNet or ShuffleNetV2, or of timm's "
                'mobilenetv2 or mnasnet, whole, unchanged and in their order.'
            )
    renamed = dict(zip(own, state.values(), strict=True))
    return replace(closest, state_dict=renamed)


def _form(item: tuple[str, Tensor]) -> tuple[str, torch.Size]:
    name, tensor = item
    return name.rpartition('.')[2], tensor.shape


def _network_like(
    state: dict[str, Tensor], backbone: type[AttentionBackbone]
) -> Converted:
    """Return our classifier of the width of ``state``, without values."""
    kernels, matrices = (
        [tensor for tensor in state.values() if tensor.ndim == axes]
        for axes in (4, 2)
    )
    width = _widen_factor(backbone, _rows(kernels[-2:-1]))
    num_classes = _rows(matrices[-1:])
    with torch.device('meta'):
        trunk = backbone(width)
        fc = nn.Linear(trunk.stages[-1].out_channels, num_classes)
        head = nn.ModuleDict(dict(fc=fc))
        own = nn.ModuleDict(dict(backbone=trunk, head=head)).state_dict()
    if not any(name.endswith('_tracked') for name in state):
        # Files from before PyTorch 0.4.1 have no such counters.
        own = {k: v for k, v in own.items() if not k.endswith('_tracked')}
    return Converted(backbone.__name__, width, num_classes, own)


def _widen_factor(backbone: type[AttentionBackbone], channels: int) -> float:
    """Return the width of which the last convolution but one has channels."""
    if backbone is AttentionShuffleNetV2:
        # A branch has half of the last stage's channels.
        widths = backbone.widths
        return min(widths, key=lambda w: abs(widths[w][2] - 2 * channels))
    # The last stage has 320 channels at width 1, in steps of 8.
    return channels / 320


def _rows(tensors: list[Tensor]) -> int:
    """Return a layer's outputs; 1 if there is no such layer."""
    return max([1, *map(len, tensors)])


def convert_file(
    src: str, dst: str, force: bool = False, trust: bool = False
) -> Converted:
    """Convert a file or URL of published weights to a checkpoint of ours.

    ``force`` replaces the file ``dst``, which appears whole or not at all;
    ``trust`` runs the code that ``src`` may bring with it.

    Raises:
        UserInputError: If ``src`` cannot be converted, or ``dst`` is there or
            cannot be opened.
        OSError: If ``dst`` cannot be written.
    """
    target = Path(dst).expanduser()
    check_writable(target)
    if target.exists() and not force:
        raise UserInputError(
            f'{target} exists: give another name, or --force to replace it.'
        )
    state = state_dict_of(load_checkpoint_file(src, trust=trust))
    converted = convert(state, f'The checkpoint {src}')
    meta = dict(vars(converted), source=Path(src).name)
    content = io.BytesIO()
    torch.save(dict(state_dict=meta.pop('state_dict'), meta=meta), content)
    write_in_one_step(target, content.getvalue())
    return converted


def summary(converted: Converted, dst: str) -> str:
    """Say what was converted, and how a config uses it."""
    init = dict(type='Pretrained', prefix='backbone.', checkpoint=dst)
    given = f'{len(converted.state_dict)} tensors for {converted.backbone}'
    return f"""\
{dst}: {given}, {converted.num_classes} classes.
Use it in a config, with or without attention:
backbone=dict(
    type='sb_mm.{converted.backbone}',
    widen_factor={converted.widen_factor},
    init_cfg={init},
)"""
