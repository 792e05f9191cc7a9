"""The manifest: every row of the paper's tables, and what reproduces it.

A row is a *cell* here: one network, trained with one recipe. It is a config
file plus overrides; leaves of ``configs/`` exist for network x width x
attention, and the ablations differ from a leaf by an argument or two.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from mmengine.config import Config

from sb_mm.engine.config import read_config
from sb_mm.engine.options import apply_options
from sb_mm.errors import UserInputError, first_few
from sb_mm.files import product_root

from .datasets import DATASETS, DatasetSpec

REPOSITORY = product_root()

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
_FILE_NAMES = {
    'mobilenet_v2': 'mobilenetv2',
    'mobilenet_v2_cifar': 'mobilenetv2',
    'ssdlite_mobilenet_v2': 'ssdlite_mobilenetv2',
    'shufflenet_v2': 'shufflenetv2',
    'mnasnet': 'mnasnet',
}


# By identity: each is made once, and what is known of it is kept.
@dataclass(frozen=True, eq=False)
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
    def spec(self) -> DatasetSpec:
        """What it is trained on."""
        return DATASETS[self.dataset]

    @property
    def result(self) -> float | None:
        """The paper's result in percent, None for "/", a failed training."""
        return self.printed[self.spec.printed]

    @property
    def config(self) -> str:
        """Config file, relative to the repository."""
        name = f'{_FILE_NAMES[self.network]}-{self.attention.lower()}'
        name += f'-w{self.width}{self.spec.suffix}'
        return f'configs/{self.spec.folder}/{name}'

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
        return ' '.join([self.config, *as_options(self.overrides)])

    def resolve(self) -> Config:
        """Return the config with the overrides merged in.

        Raises:
            UserInputError: If the config is not there, or an override names
                nothing in it.
        """
        cfg = copy.deepcopy(read_leaf(self.config))
        apply_options(cfg, self.overrides)
        return cfg


@cache
def read_leaf(config: str) -> Config:
    """Return a config of the repository, not to be changed."""
    return read_config(str(REPOSITORY / config))


def as_options(overrides: Mapping[str, Any]) -> list[str]:
    """Return overrides as ``--cfg-options`` takes them."""
    return [f'{k}={_as_option(v)}' for k, v in overrides.items()]


def _as_option(value: object) -> str:
    if isinstance(value, (list, tuple)):
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
    tables: Sequence[int] = (),
    widths: Sequence[float] = (),
    attentions: Sequence[str] = (),
    ids: Sequence[str] = (),
) -> list[Cell]:
    """Return cells in the paper's order, and behind them those of ``ids``.

    Args:
        tables: Numbers; all tables if neither they nor ids are given.
        widths: Of the tables' cells; all if empty.
        attentions: The same, such as ``'SB'``.
        ids: Of further cells.

    Raises:
        UserInputError: If something named does not exist, or nothing is left.
    """
    if ids and not tables and (widths or attentions):
        raise UserInputError(
            'Width and attention select from tables, and only cells are '
            'named: name a table, or leave them out.'
        )
    cells = [] if ids and not tables else list(load_cells())
    for name, wanted in (
        ('table', tables),
        ('width', widths),
        ('attention', attentions),
    ):
        if wanted:
            known = sorted({getattr(cell, name) for cell in cells})
            _check_exist(name, wanted, known)
            cells = [c for c in cells if getattr(c, name) in wanted]
    return cells + [find_cell(name) for name in ids]


def _check_exist(name: str, wanted: Sequence, known: Sequence) -> None:
    for value in wanted:
        if value not in known:
            raise UserInputError(
                f'There is no {name} {value}: choose from '
                f'{", ".join(map(str, known))}.'
            )
