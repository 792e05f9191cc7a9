"""From torchvision's and timm's published weights to our backbones'."""

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from .checkpoint import load_checkpoint_file, shape_conflicts, state_dict_of
from .errors import UserInputError, first_few
from .models.backbones import (
    AttentionMnasNet,
    AttentionMobileNetV2,
    AttentionShuffleNetV2,
)
from .models.backbones.base import AttentionBackbone
from .models.backbones.mobilenet_v2 import InvertedResidualNet


@dataclass(frozen=True)
class _Network:
    """A network that another library has under other names.

    Attributes:
        name: Whose it is, and how it is called there.
        backbone: Our class.
        layers: Its convolutions, each before its norm, and its classifier, in
            the order in which ours are built.
    """

    name: str
    backbone: type[AttentionBackbone]
    layers: tuple[str, ...]

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
    """A classifier's weights under our names.

    Attributes:
        source: Name of the network that it was, such as
            ``"torchvision's MobileNetV2"``.
        backbone: Name of our class.
        widen_factor: Its width.
        num_classes: Outputs of the classifier.
        state_dict: ``backbone.*`` and ``head.fc.*``, as in a checkpoint of
            mmpretrain's ``ImageClassifier``.
    """

    source: str
    backbone: str
    widen_factor: float
    num_classes: int
    state_dict: dict[str, Tensor]


def _names(*parts: tuple[str, str]) -> tuple[str, ...]:
    """Return the names that pairs (prefix, endings in one string) spell."""
    return tuple(f'{p}{end}' for p, ends in parts for end in ends.split())


def _blocks(backbone: type[InvertedResidualNet]) -> list[tuple[int, int]]:
    """Return (stage, number) of each block with an expand convolution."""
    stages = list(enumerate(backbone.arch_settings))[1:]
    return [(stage, i) for stage, row in stages for i in range(row[2])]


def _timm(name: str, backbone: type[InvertedResidualNet]) -> _Network:
    """Return what timm builds as an ``EfficientNet``."""
    block = 'conv_pw bn1 conv_dw bn2 conv_pwl bn3'
    layers = _names(
        ('', 'conv_stem bn1'),
        ('blocks.0.0.', 'conv_dw bn1 conv_pw bn2'),
        *((f'blocks.{s}.{i}.', block) for s, i in _blocks(backbone)),
        ('', 'conv_head bn2 classifier'),
    )
    return _Network(f"timm's {name}", backbone, layers)


_MOBILENET_V2 = _names(
    ('features.0.', '0 1'),
    ('features.1.conv.', '0.0 0.1 1 2'),
    *((f'features.{i}.conv.', '0.0 0.1 1.0 1.1 2 3') for i in range(2, 18)),
    ('', 'features.18.0 features.18.1 classifier.1'),
)
_MNASNET = _names(
    ('layers.', '0 1 3 4 6 7'),
    *(
        (f'layers.{stage + 7}.{i}.layers.', '0 1 3 4 6 7')
        for stage, i in _blocks(AttentionMnasNet)
    ),
    ('', 'layers.14 layers.15 classifier.1'),
)
_SHUFFLENET_V2 = _names(
    ('conv1.', '0 1'),
    *(
        (f'stage{stage}.{i}.branch{branch}.', convs)
        for stage, blocks in enumerate(AttentionShuffleNetV2.stage_blocks, 2)
        for i in range(blocks)
        for branch, convs in ((1, '0 1 2 3'), (2, '0 1 3 4 5 6'))
        if i == 0 or branch == 2
    ),
    ('', 'conv5.0 conv5.1 fc'),
)
_NETWORKS = (
    _Network("torchvision's MobileNetV2", AttentionMobileNetV2, _MOBILENET_V2),
    _Network("torchvision's MNASNet", AttentionMnasNet, _MNASNET),
    _Network(
        "torchvision's ShuffleNetV2", AttentionShuffleNetV2, _SHUFFLENET_V2
    ),
    _timm('mobilenetv2', AttentionMobileNetV2),
    _timm('mnasnet', AttentionMnasNet),
)


def convert(state: dict[str, Tensor], origin: str = 'It') -> Converted:
    """Rename the weights of a classifier of torchvision or timm.

    The result fits our static network of the same width exactly: nothing is
    missing, nothing is left over, every shape agrees.

    Args:
        state: The ``state_dict`` of torchvision's ``MobileNetV2``,
            ``MNASNet`` or ``ShuffleNetV2``, or of timm's ``mobilenetv2_*`` or
            ``mnasnet_*``.
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
    label = f'{origin} comes closest to {network.name} of widen_factor={width}'
    _refuse(
        f'{label}, which has no',
        [name for name in state if names[name] not in own],
    )
    _refuse(
        f'{label}, but lacks what is here named',
        # Files from before PyTorch 0.4.1 have no such counters.
        [n for n in own if n not in renamed and not n.endswith('_tracked')],
    )
    _refuse(
        f'{label}, but other shapes have',
        [
            f'{name} ({a} instead of {b})'
            for name, a, b in shape_conflicts(ours, renamed)
        ],
    )
    return Converted(
        network.name, network.backbone.__name__, width, num_classes, renamed
    )


def _recognise(state: dict[str, Tensor], origin: str) -> _Network:
    """Return the network that has most of the layers of ``state``."""
    layers = {name.rpartition('.')[0] for name in state}
    found = [n for n in _NETWORKS if n.width_layer in layers]
    if found:
        return max(found, key=lambda n: len(layers.intersection(n.layers)))
    known = ', '.join(network.name for network in _NETWORKS)
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


def _layers_of(network: nn.Module) -> list[str]:
    """Return the names of the layers with tensors, as they were built."""
    names = (name.rpartition('.')[0] for name in network.state_dict())
    return list(dict.fromkeys(names))


def _refuse(problem: str, items: list[str]) -> None:
    if items:
        raise UserInputError(
            f'{problem} {first_few(items)}: give the weights of a whole and '
            'unchanged classifier.'
        )


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
    _check_target(target, force)
    state = state_dict_of(load_checkpoint_file(src, trust=trust))
    converted = convert(state, f'The checkpoint {src}')
    meta = dict(
        source=Path(src).name,
        backbone=converted.backbone,
        widen_factor=converted.widen_factor,
        num_classes=converted.num_classes,
    )
    _save(dict(state_dict=converted.state_dict, meta=meta), target)
    return converted


def _check_target(target: Path, force: bool) -> None:
    if not os.path.isdir(target.parent):
        problem = 'has no folder: make it, or give another name.'
    elif os.path.isdir(target):
        problem = 'is a folder: give the name of a file in it.'
    elif os.path.exists(target) and not force:
        problem = 'exists: give another name, or --force to replace it.'
    else:
        return
    raise UserInputError(f'The target {target} {problem}')


def _save(content: dict, target: Path) -> None:
    try:
        with TemporaryDirectory(prefix='.partial-', dir=target.parent) as room:
            part = Path(room, target.name)
            with part.open('wb') as file:
                torch.save(content, file)
            os.replace(part, target)
    # PyTorch's writer has errors of its own.
    except (OSError, RuntimeError) as error:
        raise UserInputError(
            f'The target {target} cannot be written ({error}): give another '
            'name, or make room.'
        ) from error


def summary(converted: Converted, dst: str) -> str:
    """Say what was converted, and how a config uses it."""
    return (
        f'{dst}: {len(converted.state_dict)} tensors of '
        f'{converted.source} with widen_factor={converted.widen_factor} '
        f'and {converted.num_classes} classes.\n'
        'Use it in a config, with or without attention:\n'
        'backbone=dict(\n'
        f"    type='sb_mm.{converted.backbone}',\n"
        f'    widen_factor={converted.widen_factor},\n'
        '    init_cfg=dict(\n'
        "        type='Pretrained',\n"
        "        prefix='backbone.',\n"
        f'        checkpoint={dst!r},\n'
        '    ),\n'
        ')'
    )
