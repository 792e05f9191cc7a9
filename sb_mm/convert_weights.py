"""From torchvision's and timm's published weights to our backbones'."""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from .errors import UserInputError, first_few
from .files import write_in_one_step
from .models.backbones import (
    AttentionMnasNet,
    AttentionMobileNetV2,
    AttentionShuffleNetV2,
)
from .models.backbones.base import AttentionBackbone
from .weights import load_checkpoint_file, shape_conflicts, state_dict_of


@dataclass(frozen=True)
class _Network:
    """A network that another library has under other names."""

    name: str
    backbone: type[AttentionBackbone]
    layers: list[str]  # those with tensors, in the order of ours

    @property
    def width_layer(self) -> str:
        """The last convolution but one, whose outputs tell the width."""
        return self.layers[-5]

    def widen_factor(self, channels: int) -> float:
        """Return the width at which ``width_layer`` has so many outputs."""
        if self.backbone is AttentionShuffleNetV2:
            # A branch has half of the last stage's channels.
            widths = AttentionShuffleNetV2.widths
            return min(widths, key=lambda w: abs(widths[w][2] - 2 * channels))
        # The last stage has 320 channels at width 1, in steps of 8.
        return channels / 320


@dataclass(frozen=True)
class Converted:
    """A classifier's weights under our names."""

    source: str  # the network that it was, "torchvision's MobileNetV2"
    backbone: str
    widen_factor: float
    num_classes: int
    # `backbone.*` and `head.fc.*`, as mmpretrain's `ImageClassifier` has
    state_dict: dict[str, Tensor]


@cache
def _networks() -> list[_Network]:
    """Return the networks that can be converted."""
    mobilenet, mnasnet = AttentionMobileNetV2, AttentionMnasNet
    return [
        _torchvision('MobileNetV2', mobilenet, 'mobilenet_v2'),
        _torchvision('MNASNet', mnasnet, 'mnasnet1_0'),
        _torchvision(
            'ShuffleNetV2', AttentionShuffleNetV2, 'shufflenet_v2_x1_0'
        ),
        _Network("timm's mobilenetv2", mobilenet, _of_timm(mobilenet)),
        _Network("timm's mnasnet", mnasnet, _of_timm(mnasnet)),
    ]


def _torchvision(
    name: str, backbone: type[AttentionBackbone], model: str
) -> _Network:
    with torch.device('meta'):
        layers = _layers_of(get_model(model))
    return _Network(f"torchvision's {name}", backbone, layers)


def _of_timm(backbone: type[AttentionBackbone]) -> list[str]:
    """Return the layers of what timm builds, which need not be installed."""
    layers = ['conv_stem', 'bn1']
    for stage, (_, _, blocks, *_) in enumerate(backbone.arch_settings):
        convs = ('pw', 'dw', 'pwl') if stage else ('dw', 'pw')
        for block in range(blocks):
            name = f'blocks.{stage}.{block}'
            for i, conv in enumerate(convs, 1):
                layers += [f'{name}.conv_{conv}', f'{name}.bn{i}']
    return [*layers, 'conv_head', 'bn2', 'classifier']


def _layers_of(network: nn.Module) -> list[str]:
    """Return the names of the layers with tensors, as they were built."""
    names = (name.rpartition('.')[0] for name in network.state_dict())
    return list(dict.fromkeys(names))


def convert(state: dict[str, Tensor], origin: str = 'It') -> Converted:
    """Rename the weights of a classifier of torchvision or timm.

    The result fits our static network of the same width exactly: nothing is
    missing, nothing is left over, every shape agrees.

    Args:
        state: Of a classifier of :func:`_networks`.
        origin: What the error messages call it, such as the file's name.

    Raises:
        UserInputError: If it is of no such network, or of a changed one.
    """
    network = _recognise(state, origin)
    width = network.widen_factor(_rows(state, network.width_layer))
    num_classes = _rows(state, network.layers[-1])
    ours = _classifier(network.backbone, width, num_classes)
    layers = dict(zip(network.layers, _layers_of(ours), strict=True))
    names = {}
    for name in state:
        layer, _, kind = name.rpartition('.')
        names[name] = f'{layers.get(layer)}.{kind}'
    renamed = {names[name]: tensor for name, tensor in state.items()}
    own = ours.state_dict()
    faults = {
        'which has no': [name for name in state if names[name] not in own],
        # Files from before PyTorch 0.4.1 have no such counters.
        'but lacks what is here named': [
            n for n in own if n not in renamed and not n.endswith('_tracked')
        ],
        'but other shapes have': [
            f'{name} ({a} instead of {b})'
            for name, a, b in shape_conflicts(ours, renamed)
        ],
    }
    for fault, items in faults.items():
        if items:
            raise UserInputError(
                f'{origin} comes closest to {network.name} of '
                f'widen_factor={width}, {fault} {first_few(items)}: give the '
                'weights of a whole and unchanged classifier.'
            )
    return Converted(
        network.name, network.backbone.__name__, width, num_classes, renamed
    )


def _recognise(state: dict[str, Tensor], origin: str) -> _Network:
    """Return the network that has most of the layers of ``state``."""
    layers = {name.rpartition('.')[0] for name in state}
    found = [n for n in _networks() if n.width_layer in layers]
    if found:
        return max(found, key=lambda n: len(layers.intersection(n.layers)))
    known = ', '.join(network.name for network in _networks())
    raise UserInputError(
        f'{origin} holds none of {known}, but '
        f'{first_few(list(state)) or "no tensors"}: give the weights of one '
        'of them.'
    )


def _rows(state: dict[str, Tensor], layer: str) -> int:
    """Return a layer's outputs; 1 if there is no such layer."""
    weight = state.get(f'{layer}.weight', torch.empty(1))
    return max((1, *weight.shape[:1]))


def _classifier(
    backbone: type[AttentionBackbone], width: float, num_classes: int
) -> nn.Module:
    """Return our static network, whose tensors have shapes but no values."""
    with torch.device('meta'):
        trunk = backbone(width)
        fc = nn.Linear(trunk.stages[-1].out_channels, num_classes)
        head = nn.ModuleDict(dict(fc=fc))
        return nn.ModuleDict(dict(backbone=trunk, head=head))


def convert_file(
    src: str, dst: str, force: bool = False, trust: bool = False
) -> Converted:
    """Convert a file of published weights to a checkpoint of ours.

    The checkpoint appears whole or not at all.

    Args:
        src: File or URL: a ``state_dict``, or a checkpoint with one.
        dst: The file to write.
        force: Replace ``dst``.
        trust: Run the code that the file may bring with it.

    Raises:
        UserInputError: If ``src`` cannot be converted or ``dst`` cannot be
            written.
    """
    target = Path(dst).expanduser()
    try:
        if fault := _fault(target, force):
            raise UserInputError(f'The target {target} {fault}')
        state = state_dict_of(load_checkpoint_file(src, trust=trust))
        converted = convert(state, f'The checkpoint {src}')
        meta = dict(
            source=Path(src).name,
            backbone=converted.backbone,
            widen_factor=converted.widen_factor,
            num_classes=converted.num_classes,
        )
        content = io.BytesIO()
        torch.save(dict(state_dict=converted.state_dict, meta=meta), content)
        write_in_one_step(target, content.getvalue())
    except OSError as error:
        raise UserInputError(
            f'The target {target} cannot be written ({error.strerror}): give '
            'another name, or make room.'
        ) from error
    return converted


def _fault(target: Path, force: bool) -> str | None:
    """Return what is wrong with a target and what to do, if anything is."""
    if not target.parent.is_dir():
        return 'has no folder: make it, or give another name.'
    if target.is_dir():
        return 'is a folder: give the name of a file in it.'
    if target.exists() and not force:
        return 'exists: give another name, or --force to replace it.'
    return None


def summary(converted: Converted, dst: str) -> str:
    """Say what was converted, and how a config uses it."""
    return f"""\
{dst}: {len(converted.state_dict)} tensors of {converted.source} with \
widen_factor={converted.widen_factor} and {converted.num_classes} classes.
Use it in a config, with or without attention:
backbone=dict(
    type='sb_mm.{converted.backbone}',
    widen_factor={converted.widen_factor},
    init_cfg=dict(
        type='Pretrained',
        prefix='backbone.',
        checkpoint={dst!r},
    ),
)"""
