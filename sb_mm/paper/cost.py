"""What a network costs: parameters and multiply-adds, beside the printed ones.

PyTorch's ``FlopCounterMode`` counts a multiply-add as 2, in the operators that
a forward pass runs: convolutions and matrix products, among them the Linear
layers of the gates and the mixture of a dynamic convolution's kernels.
Normalisation, pooling and activations are not counted.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sb_mm.engine.build import build_model
from sb_mm.models.layers import ChannelAttention, ShiftBalance

from .cells import Cell, find_cell

# Arguments that change neither size nor multiply-adds.
_FREE = ('lambda_init', 'gate', 'dropout')


class Cost(NamedTuple):
    """Learnable numbers of a network, and multiply-adds for one image."""

    parameters: int
    multiply_adds: int


# By the experiment.
_costs: dict[str, Cost] = {}


def count(cell: Cell) -> Cost:
    """Count a cell's network for one image ``(1, 3, size, size)``.

    Networks that differ in free arguments alone are counted once.
    """
    settings = {k: v for k, v in cell.settings.items() if k not in _FREE}
    plain = replace(cell, settings=settings)
    if plain.experiment not in _costs:
        network = build_model(plain.resolve()).eval()
        with FlopCounterMode(display=False) as counter:
            _run(network, plain)
        size = sum(p.numel() for p in network.parameters())
        cost = Cost(size, counter.get_total_flops() // 2)
        _costs[plain.experiment] = cost
    return _costs[plain.experiment]


@torch.no_grad()
def _run(network: nn.Module, cell: Cell) -> None:
    network(torch.zeros(1, 3, cell.spec.image_size, cell.spec.image_size))


class Comparison(NamedTuple):
    """A printed number beside ours, both in millions.

    Attributes:
        paper: None if the paper prints none.
        ours: The exact number.
        verdict: Whether the printed one follows, nothing if there is none.
    """

    paper: float | None
    ours: float
    verdict: str


def compare(
    paper: float | None, ours: float, expected: float, tolerance: float
) -> Comparison:
    """Compare a printed number with what ours says that it should be."""
    if paper is None:
        return Comparison(paper, ours, '')
    # A little more, for decimals that binary floats do not hold.
    follows = abs(paper - expected) <= tolerance * (1 + 1e-6)
    return Comparison(paper, ours, 'ok' if follows else 'MISMATCH')


def compare_parameters(cell: Cell) -> Comparison:
    """Compare with the printed number of parameters."""
    millions = count(cell).parameters / 1e6
    return compare(cell.printed.get('params_m'), millions, millions, 5e-4)


def compare_multiply_adds(cell: Cell) -> Comparison:
    """Compare with the one column of multiply-adds, that of Table 1.

    Its static and DyConv numbers are those of the DyConv paper
    (arXiv:1912.03458), whose rounding differs by up to 0.3 % and whose DyConv
    is another network. To the static number, SB adds the multiply-adds of its
    Linear layers, and SE those and its pooling: to the last printed digit.
    """
    paper = cell.printed.get('madds_m')
    ours = count(cell).multiply_adds / 1e6
    if paper is None or cell.attention == 'static':
        return compare(paper, ours, ours, 0.003 * ours)
    if cell.attention == 'DyConv':
        return Comparison(paper, ours, 'another network')
    static = find_cell(f't{cell.table}-static-x{cell.width}')
    expected = static.printed['madds_m'] + ours
    expected -= count(static).multiply_adds / 1e6
    if cell.attention == 'SE':
        layers = attention_shapes(cell, ChannelAttention).values()
        expected += sum(s.in_channels * s.in_pixels for s in layers) / 1e6
    return compare(paper, ours, expected, 0.05)


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


def attention_shapes(
    cell: Cell, kind: type[ChannelAttention] = ShiftBalance
) -> dict[str, Shape]:
    """Run a cell's network and see what each attention gets, by its name."""
    shapes = {}
    network = build_model(cell.resolve()).eval()
    names = {module: name for name, module in network.named_modules()}

    def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        trunk, x = inputs[:2]
        hidden = module.gate.fc1.out_features
        pixels = x[0, 0].numel(), trunk[0, 0].numel()
        shapes[names[module]] = Shape(
            x.size(1), hidden, trunk.size(1), *pixels
        )

    for module in network.modules():
        if isinstance(module, kind):
            module.register_forward_pre_hook(observe)
    _run(network, cell)
    return shapes
