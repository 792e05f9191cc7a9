"""The manifest: every row of the paper's tables, and what reproduces it.

A row is a *cell* here: one network, trained with one recipe. It is a config
file plus overrides; leaves of ``configs/`` exist for network x width x
attention, and the ablations differ from a leaf by an argument or two.
"""

import copy
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from mmengine.config import Config

from sb_mm.engine.config import read_config
from sb_mm.engine.options import apply_options
from sb_mm.errors import UserInputError, first_few

REPOSITORY = Path(__file__).resolve().parents[2]

# What the paper means, in the words of the backbones.
_PLACEMENTS = {
    None: None,
    'block output': ('block',),
    'expand': ('expand',),
    'expand+project': ('expand', 'project'),
    'expand+depthwise+project': ('expand', 'depthwise', 'project'),
    'all three layers of a block': ('expand', 'depthwise', 'project'),
}
_ALL = ('expand', 'depthwise', 'project')
# The ablated arguments with the values that they have elsewhere (Sec. 4.2,
# and no dropout in the gates but in Table 7).
_DEFAULTS = dict(
    lambda_init=0.1, gate='tanh', hidden_multiplier=1, dropout=0.0
)
# The printed numbers, and what the rest of a row is called.
_NUMBERS = ('params_m', 'madds_m', 'top1', 'std', 'runs', 'map_percent')
_LEAVES = {
    'imagenet': 'imagenet/{net}-{attention}-w{width}_1xb256-300e_in1k.py',
    'cifar10': 'cifar10/{net}-{attention}-w{width}_1xb128-200e_cifar10.py',
    'voc0712': 'voc/{net}-{attention}-w{width}_1xb32-200e_voc0712.py',
}
_FILE_NAMES = {
    'mobilenet_v2': 'mobilenetv2',
    'mobilenet_v2_cifar': 'mobilenetv2',
    'ssdlite_mobilenet_v2': 'ssdlite_mobilenetv2',
    'shufflenet_v2': 'shufflenetv2',
    'mnasnet': 'mnasnet',
}


@dataclass(frozen=True)
class Cell:
    """A row of one of the paper's tables.

    Attributes:
        table: 1-10.
        row: The row's label in the paper.
        dataset: ``'imagenet'``, ``'cifar10'`` or ``'voc0712'``.
        network: Such as ``'mobilenet_v2_cifar'``.
        width: Factor on the channels.
        attention: ``'static'``, ``'SE'``, ``'SB'`` or ``'DyConv'``.
        placement: Where in a block, in the paper's words; None for static.
        settings: The ablated arguments of the attention.
        printed: The paper's numbers: ``params_m`` and ``madds_m`` in
            millions, ``top1`` or ``map_percent`` in percent with ``std`` over
            ``runs``. A result of None is the paper's "/", a failed training.
    """

    table: int
    row: str
    dataset: str
    network: str
    width: float
    attention: str
    placement: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    printed: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name on the command line, such as ``t8-x0.35-lambda_init-0.01``."""
        slug = re.sub(r'[^a-z0-9._]+', '-', self.row.lower()).strip('-')
        return f't{self.table}-{slug}'

    @property
    def metric(self) -> str:
        """Key of the result in ``printed``."""
        return 'map_percent' if self.dataset == 'voc0712' else 'top1'

    @property
    def config(self) -> str:
        """Config file, relative to the repository."""
        leaf = _LEAVES[self.dataset].format(
            net=_FILE_NAMES[self.network],
            attention=self.attention.lower(),
            width=self.width,
        )
        return f'configs/{leaf}'

    @property
    def overrides(self) -> dict[str, Any]:
        """What differs from the config, by dotted keys."""
        changed = {
            f'model.backbone.attention.{name}': value
            for name, value in self.settings.items()
            if value != _DEFAULTS[name]
        }
        layers = _PLACEMENTS[self.placement]
        if layers is not None and layers != self._layers_of_leaf():
            changed['model.backbone.attention_layers'] = list(layers)
        return changed

    def _layers_of_leaf(self) -> tuple[str, ...]:
        in_blocks = self.network == 'mobilenet_v2' and self.attention == 'SE'
        return ('block',) if in_blocks else _ALL

    @property
    def experiment(self) -> str:
        """What is trained: equal for cells that several tables repeat."""
        return ' '.join([self.config, *self.options()])

    def options(self) -> list[str]:
        """Return the overrides as ``--cfg-options`` takes them."""
        return [f'{k}={_as_option(v)}' for k, v in self.overrides.items()]

    def resolve(self) -> Config:
        """Return the config with the overrides merged in.

        Raises:
            UserInputError: If the config is not there, or an override names
                nothing in it.
        """
        cfg = copy.deepcopy(_leaf(self.config))
        apply_options(cfg, self.overrides)
        return cfg


@cache
def _leaf(config: str) -> Config:
    return read_config(str(REPOSITORY / config))


def _as_option(value: object) -> str:
    if isinstance(value, list):
        return f'[{",".join(map(str, value))}]'
    return str(value)


@cache
def paper_tables() -> dict:
    """Return the package data: source, units and rows of the ten tables."""
    return json.loads(files(__package__).joinpath('tables.json').read_text())


@cache
def load_cells() -> tuple[Cell, ...]:
    """Return every cell, in the paper's order."""
    return tuple(_cell(row) for row in paper_tables()['rows'])


def _cell(row: dict) -> Cell:
    names = Cell.__dataclass_fields__
    return Cell(
        **{k: v for k, v in row.items() if k in names},
        settings={k: row[k] for k in _DEFAULTS if k in row},
        printed={k: row[k] for k in (*_NUMBERS, 'note') if k in row},
    )


def find_cell(cell_id: str) -> Cell:
    """Return the cell of that id.

    Raises:
        UserInputError: Names the closest ids.
    """
    cells = {cell.id: cell for cell in load_cells()}
    if cell_id in cells:
        return cells[cell_id]
    # First among those of the table that it names.
    table = [c for c in cells if c.split('-')[0] == cell_id.split('-')[0]]
    close = get_close_matches(cell_id, table or cells, 3, 0.4)
    raise UserInputError(
        f'There is no cell {cell_id!r}: did you mean '
        f'{first_few(close or list(cells))}? tools/paper.py list shows all '
        f'{len(cells)}.'
    )


def select_cells(
    table: int | None = None, width: float | None = None
) -> list[Cell]:
    """Return the cells of one table, of one width, or both.

    Raises:
        UserInputError: If there is no such table, or no such width in it;
            lists what exists.
    """
    cells = list(load_cells())
    if table is not None:
        _check_exists('table', table, (c.table for c in cells))
        cells = [c for c in cells if c.table == table]
    if width is not None:
        _check_exists('width', width, (c.width for c in cells))
        cells = [c for c in cells if c.width == width]
    return cells


def _check_exists(name: str, value: float, existing: Iterable[float]) -> None:
    known = sorted(set(existing))
    if value not in known:
        raise UserInputError(
            f'There is no {name} {value}: choose from '
            f'{", ".join(map(str, known))}.'
        )
