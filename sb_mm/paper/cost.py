"""What a network costs: parameters and multiply-adds, beside the printed ones.

MMEngine's ``FlopAnalyzer`` counts one multiply-add as 1, from the operators
that a forward pass runs. For these networks that is exact: a convolution is a
``conv`` operator, or, if it is dynamic and pointwise, a batched matrix product
(``bmm``); the Linear layers of gates and classifier are ``linear``; and the
mixture of a dynamic convolution's kernels is a ``matmul``. Normalisation,
pooling and activations are not counted.
"""

import json
import warnings
from dataclasses import dataclass
from functools import cache

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from torch import Tensor, nn

from sb_mm.engine.build import build_model
from sb_mm.models.layers import ChannelAttention, ShiftBalance

from .cells import Cell, load_cells

# Arguments that change neither size nor multiply-adds.
_FREE = ('lambda_init', 'gate', 'dropout')


@dataclass(frozen=True)
class Cost:
    """Size and cost of a network.

    Attributes:
        parameters: Learnable numbers.
        convolution: Multiply-adds of the convolutions for one image.
        linear: Of the Linear layers, those of the gates among them.
        mixing: Of the mixtures of dynamic kernels.
    """

    parameters: int
    convolution: int
    linear: int
    mixing: int

    @property
    def multiply_adds(self) -> int:
        """All of them."""
        return self.convolution + self.linear + self.mixing


def network_cost(cfg: Config, image_size: int) -> Cost:
    """Count a config's network for one image ``(1, 3, size, size)``.

    Networks that differ in free arguments alone are counted once.
    """
    model = json.dumps(_without_free(cfg.model), default=str)
    return _cost(model, cfg.default_scope, image_size)


def _without_free(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {k: _without_free(v) for k, v in value.items() if k not in _FREE}


@cache
def _cost(model: str, scope: str, image_size: int) -> Cost:
    cfg = Config(dict(model=json.loads(model), default_scope=scope))
    network = build_model(cfg).eval()
    images = torch.zeros(1, 3, image_size, image_size)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # tracing shapes with Python numbers
        counter = FlopAnalyzer(network, (images,))
        counter.unsupported_ops_warnings(False)
        counter.uncalled_modules_warnings(False)
        operators = counter.by_operator()
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        convolution=operators['conv'] + operators['bmm'],
        linear=operators['linear'] + operators['addmm'],
        mixing=operators['matmul'],
    )


@dataclass(frozen=True)
class Comparison:
    """A printed number beside ours, both in millions.

    Attributes:
        paper: The printed number; None if the paper prints none.
        ours: The exact number.
        expected: What ours says that the table should print; None if it does
            not follow from the network.
        tolerance: Of the printed number.
    """

    paper: float | None
    ours: float
    expected: float | None
    tolerance: float

    @property
    def is_checked(self) -> bool:
        """Whether there is a printed number that follows from a network."""
        return self.paper is not None and self.expected is not None

    @property
    def matches(self) -> bool:
        """Whether the printed number follows, if it is to be checked."""
        if not self.is_checked:
            return True
        # A little more, for decimals that binary floats do not hold.
        return abs(self.paper - self.expected) <= self.tolerance * (1 + 1e-6)


@dataclass(frozen=True)
class CheckedCell:
    """A cell's network, counted."""

    cell: Cell
    cost: Cost
    parameters: Comparison
    multiply_adds: Comparison

    @property
    def matches(self) -> bool:
        """Whether every printed number follows."""
        return self.parameters.matches and self.multiply_adds.matches


@cache
def check_cell(cell: Cell) -> CheckedCell:
    """Build a cell's network and compare its counts with the paper's."""
    counted = _cost_of(cell)
    millions = counted.parameters / 1e6
    return CheckedCell(
        cell,
        counted,
        Comparison(cell.printed.get('params_m'), millions, millions, 5e-4),
        _compare_multiply_adds(cell, counted),
    )


def _cost_of(cell: Cell) -> Cost:
    return network_cost(cell.resolve(), cell.spec.image_size)


def _compare_multiply_adds(cell: Cell, counted: Cost) -> Comparison:
    """Compare with the one column of multiply-adds, that of Table 1.

    Its static and DyConv numbers are those of the DyConv paper
    (arXiv:1912.03458), whose rounding differs by up to 0.3 %, and whose DyConv
    network is not the one that has the printed number of parameters, so that
    its number is not checked. To the static number, SB adds the multiply-adds
    of its Linear layers, and SE those of its Linear layers and its pooling:
    these must be ours to the last printed digit.
    """
    paper = cell.printed.get('madds_m')
    ours = counted.multiply_adds / 1e6
    if paper is None or cell.attention == 'DyConv':
        return Comparison(paper, ours, None, 0.0)
    if cell.attention == 'static':
        return Comparison(paper, ours, ours, 0.003 * ours)
    static = _static_row(cell)
    added = counted.linear - _cost_of(static).linear
    if cell.attention == 'SE':
        added += sum(
            shape.in_channels * shape.in_pixels
            for shape in _attention_shapes(cell, ChannelAttention).values()
        )
    expected = static.printed['madds_m'] + added / 1e6
    return Comparison(paper, ours, expected, 0.05)


def _static_row(cell: Cell) -> Cell:
    (found,) = [
        c
        for c in load_cells()
        if (c.table, c.width, c.attention)
        == (cell.table, cell.width, 'static')
    ]
    return found


@dataclass(frozen=True)
class Shape:
    """What an attention reads and changes, for one image.

    Attributes:
        in_channels: ``Cin``.
        hidden_channels: ``Chid`` of the gate.
        out_channels: ``Cout``.
        in_pixels: ``H * W``.
        out_pixels: ``H' * W'``.
    """

    in_channels: int
    hidden_channels: int
    out_channels: int
    in_pixels: int
    out_pixels: int

    @property
    def multiplies(self) -> int:
        """What SB adds, Eq. 10-17 of the paper.

        ``1 / (H * W)`` once a channel for the global average pooling, the two
        Linear layers, and lambda.
        """
        return self.in_channels + self._linear + self.out_channels

    @property
    def adds(self) -> int:
        """The same: pooling, the two Linear layers, and the shift."""
        pooling = self.in_channels * self.in_pixels
        return pooling + self._linear + self.out_channels * self.out_pixels

    @property
    def _linear(self) -> int:
        return self.hidden_channels * (self.in_channels + self.out_channels)


def layer_overheads(cell: Cell) -> dict[str, Shape]:
    """Return what every layer with SB adds, by its name."""
    return _attention_shapes(cell, ShiftBalance)


def _attention_shapes(
    cell: Cell, kind: type[ChannelAttention]
) -> dict[str, Shape]:
    """Run the network and see what each attention gets."""
    shapes = {}

    def observe(name: str, module: nn.Module, inputs: tuple[Tensor, ...]):  # noqa: ANN202
        trunk, x = inputs[:2]
        shapes[name] = Shape(
            x.size(1),
            module.gate.fc1.out_features,
            trunk.size(1),
            x[0, 0].numel(),
            trunk[0, 0].numel(),
        )

    model = build_model(cell.resolve()).eval()
    for name, module in model.named_modules():
        if isinstance(module, kind):
            module.register_forward_pre_hook(
                lambda m, inputs, name=name: observe(name, m, inputs)
            )
    size = cell.spec.image_size
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return shapes
