"""What a network costs: parameters and multiply-adds, beside the printed ones.

PyTorch's ``FlopCounterMode`` counts a multiply-add as 2, in the operators that
a forward pass runs: convolutions and matrix products, among them the Linear
layers of the gates and the mixture of a dynamic convolution's kernels.
Normalisation, pooling and activations are not counted.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sb_mm.engine.build import build_model
from sb_mm.models.layers import ChannelAttention

from .cells import Cell, as_options, find_cell

# Arguments that change neither size nor multiply-adds.
_FREE = ('.lambda_init', '.gate', '.dropout')
# What is said of a printed number.
OK, MISMATCH, ANOTHER = 'ok', 'MISMATCH', 'another network'


class Shape(NamedTuple):
    """What an attention reads and changes, for one image."""

    in_channels: int  # Cin
    hidden_channels: int  # Chid of the gate
    out_channels: int  # Cout
    in_pixels: int  # H * W
    out_pixels: int  # H' * W'

    @property
    def overhead(self) -> tuple[int, int]:
        """Multiplies and adds of SB, Eq. 10-17 of the paper.

        Of the global average pooling, with ``1 / (H * W)`` once a channel, the
        two Linear layers, lambda, and the shift.
        """
        channels = self.in_channels + self.out_channels
        pixels = self.in_channels * self.in_pixels
        pixels += self.out_channels * self.out_pixels
        linear = self.hidden_channels * channels
        return channels + linear, pixels + linear


class Cost(NamedTuple):
    """Learnable numbers of a network, and what it computes for one image."""

    parameters: int
    multiply_adds: int
    attentions: dict[str, Shape]  # by the layer's name

    @property
    def overhead(self) -> tuple[int, int]:
        """Multiplies and adds of SB in all layers, Eq. 10-17."""
        added = [shape.overhead for shape in self.attentions.values()]
        return tuple(map(sum, zip(*added, strict=True)))


_costs: dict[tuple, Cost] = {}


def count(cell: Cell) -> Cost:
    """Count a cell's network for one image ``(1, 3, size, size)``.

    Networks that differ in free arguments alone are counted once.
    """
    options = as_options(cell.overrides)
    sized = (o for o in options if not o.split('=')[0].endswith(_FREE))
    key = cell.config, *sized
    if key not in _costs:
        _costs[key] = _count(cell)
    return _costs[key]


@torch.no_grad()
def _count(cell: Cell) -> Cost:
    network = build_model(cell.resolve()).eval()
    shapes, size = {}, cell.spec.image_size
    for name, module in network.named_modules():
        if isinstance(module, ChannelAttention):
            module.register_forward_pre_hook(partial(_observe, shapes, name))
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size))
    parameters = sum(p.numel() for p in network.parameters())
    return Cost(parameters, counter.get_total_flops() // 2, shapes)


def _observe(
    shapes: dict, name: str, module: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    trunk, x = inputs[:2]
    hidden = module.gate.fc1.out_features
    pixels = x[0, 0].numel(), trunk[0, 0].numel()
    shapes[name] = Shape(x.size(1), hidden, trunk.size(1), *pixels)


def parameters_verdict(cell: Cell) -> str:
    """Return whether the printed number follows; '' if there is none."""
    millions = count(cell).parameters / 1e6
    return _verdict(cell.printed.get('params_m'), millions, 5e-4)


def madds_verdict(cell: Cell) -> str:
    """Return the same of the multiply-adds, which Table 1 alone prints.

    Its static and DyConv numbers are those of the DyConv paper
    (arXiv:1912.03458), whose rounding differs by up to 0.3 % and whose DyConv
    is another network. To the static number, SB adds the multiply-adds of its
    Linear layers, and SE those and its pooling: to the last printed digit.
    """
    paper, cost = cell.printed.get('madds_m'), count(cell)
    ours = cost.multiply_adds / 1e6
    if paper is None or cell.attention == 'static':
        return _verdict(paper, ours, 0.003 * ours)
    if cell.attention == 'DyConv':
        return ANOTHER
    static = find_cell(f't{cell.table}-static-x{cell.width}')
    more = cost.multiply_adds - count(static).multiply_adds
    if cell.attention == 'SE':
        shapes = cost.attentions.values()
        more += sum(s.in_channels * s.in_pixels for s in shapes)
    return _verdict(paper, static.printed['madds_m'] + more / 1e6, 0.05)


def _verdict(paper: float | None, expected: float, tolerance: float) -> str:
    if paper is None:
        return ''
    # A little more, for decimals that binary floats do not hold.
    follows = abs(paper - expected) <= tolerance * (1 + 1e-6)
    return OK if follows else MISMATCH
