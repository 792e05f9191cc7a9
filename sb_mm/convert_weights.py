"""From torchvision's published weights to checkpoints for our backbones."""

import os
import re
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class _Network:
    r"""How torchvision names a network that we have too.

    Attributes:
        name: Of torchvision's class.
        backbone: Ours.
        width_layer: Layer whose output channels tell the width; no other
            network of torchvision has one of that name.
        width_of: Maps these channels to the nearest ``widen_factor``.
        classifier: Name of the last Linear layer.
        rules: Patterns of the other layers' names, and what they become;
            ``\1`` stands for what the pattern's first group matched.
    """

    name: str
    backbone: type[AttentionBackbone]
    width_layer: str
    width_of: Callable[[int], float]
    classifier: str
    rules: dict[str, str]

    def rename(self, tensor: str) -> str | None:
        """Return our name of a tensor, or None if no rule knows it."""
        layer, _, kind = tensor.rpartition('.')
        if layer == self.classifier:
            return f'head.fc.{kind}'
        for pattern, template in self.rules.items():
            if match := re.fullmatch(pattern, layer):
                return f'backbone.{match.expand(template)}.{kind}'
        return None


@dataclass(frozen=True)
class Converted:
    """A classifier's weights under our names.

    Attributes:
        source: Name of torchvision's class.
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


def _conv_rules(pairs: dict[str, str]) -> dict[str, str]:
    """Return the rules of convolutions, each with its norm.

    Args:
        pairs: Maps the two patterns, separated by a space, to the name of our
            convolution module.
    """
    rules = {}
    for patterns, ours in pairs.items():
        conv, norm = patterns.split()
        rules |= {conv: f'{ours}.conv', norm: f'{ours}.bn'}
    return rules


def _numbered(
    theirs: str, ours: str, numbers: Sequence[tuple[str, str]]
) -> dict[str, str]:
    """Return the pairs of the convolutions in one ``nn.Sequential``.

    Args:
        theirs: Pattern of torchvision's name.
        ours: Our name.
        numbers: Positions of each convolution and its norm in torchvision's.
    """
    return {
        rf'{theirs}\.{conv} {theirs}\.{norm}': f'{ours}.{i}'
        for i, (conv, norm) in enumerate(numbers)
    }


def _mobilenet_v2_rules() -> dict[str, str]:
    pairs = {
        r'features\.0\.0 features\.0\.1': 'conv1',
        r'features\.18\.0 features\.18\.1': 'conv2',
    }
    first = (r'0\.0', r'0\.1')
    without_expand = (first, ('1', '2'))
    others = (first, (r'1\.0', r'1\.1'), ('2', '3'))
    # torchvision counts the blocks through, we count them by stage.
    number = 1
    for stage, row in enumerate(AttentionMobileNetV2.arch_settings, 1):
        for block in range(row[2]):
            pairs |= _numbered(
                rf'features\.{number}\.conv',
                f'layer{stage}.{block}.conv',
                without_expand if number == 1 else others,
            )
            number += 1
    return _conv_rules(pairs)


def _mnasnet_rules() -> dict[str, str]:
    pairs = {
        r'layers\.0 layers\.1': 'conv1',
        r'layers\.14 layers\.15': 'conv2',
    }
    pairs |= _numbered('layers', 'layer1', (('3', '4'), ('6', '7')))
    for stage in range(2, 8):
        pairs |= _numbered(
            rf'layers\.{stage + 6}\.(\d+)\.layers',
            rf'layer{stage}.\1.conv',
            (('0', '1'), ('3', '4'), ('6', '7')),
        )
    return _conv_rules(pairs)


def _shufflenet_v2_rules() -> dict[str, str]:
    pairs = {
        r'conv1\.0 conv1\.1': 'conv1',
        r'conv5\.0 conv5\.1': 'layers.3',
    }
    numbers = {
        'branch1': (('0', '1'), ('2', '3')),
        'branch2': (('0', '1'), ('3', '4'), ('5', '6')),
    }
    for stage in range(3):
        for branch in numbers:
            pairs |= _numbered(
                rf'stage{stage + 2}\.(\d+)\.{branch}',
                rf'layers.{stage}.\1.{branch}',
                numbers[branch],
            )
    return _conv_rules(pairs)


def _inverted_width(channels: int) -> float:
    # The last stage has 320 channels at width 1, in steps of 8.
    return channels / 320


def _shufflenet_width(channels: int) -> float:
    # A branch has half of the first stage's channels.
    widths = AttentionShuffleNetV2.widths
    return min(widths, key=lambda w: abs(widths[w][0] - 2 * channels))


_NETWORKS = (
    _Network(
        'MobileNetV2',
        AttentionMobileNetV2,
        'features.17.conv.2',
        _inverted_width,
        'classifier.1',
        _mobilenet_v2_rules(),
    ),
    _Network(
        'MNASNet',
        AttentionMnasNet,
        'layers.13.0.layers.6',
        _inverted_width,
        'classifier.1',
        _mnasnet_rules(),
    ),
    _Network(
        'ShuffleNetV2',
        AttentionShuffleNetV2,
        'stage2.0.branch1.2',
        _shufflenet_width,
        'fc',
        _shufflenet_v2_rules(),
    ),
)


def convert(state: dict[str, Tensor], origin: str = 'It') -> Converted:
    """Rename the weights of a torchvision classifier.

    The result fits our static network of the same width exactly: nothing is
    missing, nothing is left over, every shape agrees.

    Args:
        state: The ``state_dict`` of a ``MobileNetV2``, ``MNASNet`` or
            ``ShuffleNetV2``.
        origin: What the error messages call it, such as the file's name.

    Raises:
        UserInputError: If it is of no such network, or of a changed one.
    """
    network = _recognise(state, origin)
    width = network.width_of(_rows(state, network.width_layer))
    num_classes = _rows(state, network.classifier)
    ours = _classifier(network, width, num_classes)
    names = {theirs: network.rename(theirs) for theirs in state}
    renamed = {names[theirs]: tensor for theirs, tensor in state.items()}
    label = f"torchvision's {network.name} of widen_factor={width}"
    _refuse_unknown(origin, label, names, ours)
    _refuse_missing(origin, label, renamed, ours)
    _refuse_shapes(origin, label, renamed, ours)
    return Converted(
        network.name, network.backbone.__name__, width, num_classes, renamed
    )


def _recognise(state: dict[str, Tensor], origin: str) -> _Network:
    for network in _NETWORKS:
        if f'{network.width_layer}.weight' in state:
            return network
    known = ', '.join(network.name for network in _NETWORKS)
    raise UserInputError(
        f'{origin} holds none of the networks {known} of torchvision, but '
        f'{first_few(list(state)) or "no tensors"}: give the weights of one '
        'of them.'
    )


def _rows(state: dict[str, Tensor], layer: str) -> int:
    """Return a layer's outputs; 1 if there is no such layer."""
    weight = state.get(f'{layer}.weight', torch.empty(1))
    return max((1, *weight.shape[:1]))


def _classifier(
    network: _Network, width: float, num_classes: int
) -> nn.Module:
    """Return our static network, whose tensors have shapes but no values."""
    with torch.device('meta'):
        backbone = network.backbone(width)
        channels = backbone.stages[-1].out_channels
        head = nn.ModuleDict(dict(fc=nn.Linear(channels, num_classes)))
        return nn.ModuleDict(dict(backbone=backbone, head=head))


def _refuse_unknown(
    origin: str, label: str, names: dict[str, str | None], ours: nn.Module
) -> None:
    own = ours.state_dict()
    unknown = [theirs for theirs, name in names.items() if name not in own]
    if unknown:
        raise UserInputError(
            f'{origin} holds tensors that {label} does not have '
            f'({first_few(unknown)}): give the weights of an unchanged '
            'network.'
        )


def _refuse_missing(
    origin: str, label: str, renamed: dict[str, Tensor], ours: nn.Module
) -> None:
    missing = [
        name
        for name in ours.state_dict()
        # Files from before PyTorch 0.4.1 have no such counters.
        if name not in renamed and not name.endswith('num_batches_tracked')
    ]
    if missing:
        raise UserInputError(
            f'{origin} lacks tensors of {label}, here named '
            f'{first_few(missing)}: give the weights of a whole classifier.'
        )


def _refuse_shapes(
    origin: str, label: str, renamed: dict[str, Tensor], ours: nn.Module
) -> None:
    conflicts = shape_conflicts(ours, renamed)
    if conflicts:
        shown = [f'{n} is {a} instead of {b}' for n, a, b in conflicts]
        raise UserInputError(
            f'{origin} comes closest to {label}, but {len(conflicts)} tensors '
            f'have other shapes ({first_few(shown, "; ")}): give the weights '
            "of an unchanged network, of MNASNet torchvision's version 2."
        )


def convert_file(
    src: str, dst: str, force: bool = False, trust: bool = False
) -> Converted:
    """Convert a file of torchvision's weights to a checkpoint of ours.

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
    _check_target(src, target, force)
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


def _check_target(src: str, target: Path, force: bool) -> None:
    source = os.path.expanduser(src)
    if not os.path.isdir(target.parent):
        raise UserInputError(
            f'The folder of {target} does not exist: make it, or give another '
            'name.'
        )
    if os.path.isdir(target):
        raise UserInputError(
            f'The target {target} is a folder: give the name of a file in it.'
        )
    exists = os.path.exists(target)
    if exists and os.path.exists(source) and target.samefile(source):
        raise UserInputError(
            f'The target {target} is the source itself: give another name.'
        )
    if exists and not force:
        raise UserInputError(
            f'The target {target} exists: give another name, or --force to '
            'replace it.'
        )


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
        f'{dst}: {len(converted.state_dict)} tensors of a '
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
