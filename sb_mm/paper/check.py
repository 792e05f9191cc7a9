"""Every number of the tables that follows from a network's layers alone."""

import json
from dataclasses import dataclass
from functools import cache

import torch
from mmengine.config import Config
from torch import Tensor, nn

from sb_mm.models.layers import ChannelAttention, ShiftBalance

from .cells import Cell, load_cells
from .counting import (
    INPUT_SIZES,
    Cost,
    Overhead,
    build_network,
    cost,
    overhead,
)

# Arguments that change neither size nor multiply-adds.
_FREE = ('lambda_init', 'gate', 'dropout')


@dataclass(frozen=True)
class Comparison:
    """A printed number beside ours, both in the table's unit (millions).

    Attributes:
        paper: The printed number; None if the paper prints none.
        ours: The exact number.
        expected: What ours says that the table should print; None if it
            does not follow from the network.
        tolerance: Of the printed number.
    """

    paper: float | None
    ours: float
    expected: float | None
    tolerance: float = 0.0

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.paper is None else self.ours - self.paper

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


def check_cell(cell: Cell) -> CheckedCell:
    """Build a cell's network and compare its counts with the paper's."""
    counted = network_cost(cell.resolve(), cell.dataset)
    millions = counted.parameters / 1e6
    return CheckedCell(
        cell,
        counted,
        Comparison(cell.printed.get('params_m'), millions, millions, 5e-4),
        _compare_multiply_adds(cell, counted),
    )


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
        return Comparison(paper, ours, None)
    if cell.attention == 'static':
        return Comparison(paper, ours, ours, 0.003 * ours)
    static = _static_row(cell)
    base = network_cost(static.resolve(), cell.dataset)
    added = counted.linear - base.linear
    if cell.attention == 'SE':
        added += pooling_adds(cell)
    return Comparison(
        paper, ours, static.printed['madds_m'] + added / 1e6, 0.05
    )


def _static_row(cell: Cell) -> Cell:
    (found,) = [
        c
        for c in load_cells()
        if (c.table, c.width, c.attention)
        == (cell.table, cell.width, 'static')
    ]
    return found


def network_cost(cfg: Config, dataset: str) -> Cost:
    """Count a config's network, once for all that differ in free arguments."""
    return _cost(_key(cfg.model), cfg.default_scope, INPUT_SIZES[dataset])


def _key(model: dict) -> str:
    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in _FREE}
        return value

    return json.dumps(strip(model), default=str)


@cache
def _cost(model: str, scope: str, size: int) -> Cost:
    cfg = Config(dict(model=json.loads(model), default_scope=scope))
    return cost(build_network(cfg), size)


def pooling_adds(cell: Cell) -> int:
    """Return the additions of the gates' global average pooling."""
    shapes = _attention_shapes(cell)
    return sum(channels * pixels for _, (_, channels, pixels), _ in shapes)


def layer_overheads(cell: Cell) -> dict[str, Overhead]:
    """Return the overhead (Eq. 10-17) of every layer with SB, by its name."""
    return {
        name: overhead(cin, hidden, cout, in_pixels, out_pixels)
        for name, (hidden, cin, in_pixels), (
            cout,
            out_pixels,
        ) in _attention_shapes(cell, ShiftBalance)
    }


def _attention_shapes(
    cell: Cell, kind: type[ChannelAttention] = ChannelAttention
) -> list[tuple[str, tuple[int, int, int], tuple[int, int]]]:
    """Run the network and see what each attention gets.

    Returns:
        Layer's name, (hidden units, input channels, input pixels), (output
        channels, output pixels).
    """
    shapes = []

    def observe(name: str, module: nn.Module, inputs: tuple[Tensor, ...]):  # noqa: ANN202
        trunk, x = inputs[:2]
        hidden = module.gate.fc1.out_features
        entry = (hidden, x.size(1), x[0, 0].numel())
        shapes.append((name, entry, (trunk.size(1), trunk[0, 0].numel())))

    model = build_network(cell.resolve())
    for name, module in model.named_modules():
        if isinstance(module, kind):
            module.register_forward_pre_hook(
                lambda m, inputs, name=name: observe(name, m, inputs)
            )
    size = INPUT_SIZES[cell.dataset]
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return shapes
