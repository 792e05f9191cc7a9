"""Cells: the rows of the paper's tables, each a config plus overrides."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from mmengine.config import Config

from sb_mm.errors import UserInputError
from sb_mm.files import product_root

# Titles, datasets, rows and claims of the ten tables.
TABLES = json.loads(files(__package__).joinpath('tables.json').read_text())

# The ablated arguments with the values that they have elsewhere (Sec. 4.2,
# and no dropout in the gates but in Table 7).
_DEFAULTS = dict(
    lambda_init=0.1, gate='tanh', hidden_multiplier=1, dropout=0.0
)

_NUMBERS = ('params_m', 'madds_m', 'top1', 'map_percent', 'std', 'runs')


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset of the paper, and how it is trained on."""

    folder: str  # of its configs, in configs/
    suffix: str  # of the configs' names: batch, epochs and dataset
    image_size: int  # pixels of a side of the network's input
    train_images: int
    val_images: int
    classes: int
    printed: str = 'top1'  # the result's name in tables.json
    title: str = 'top-1'  # in text
    metric: str = 'accuracy/top1'  # in MMEngine
    factor: float = 1.0  # from that to percent


DATASETS = {
    name: DatasetSpec(**fields) for name, fields in TABLES['datasets'].items()
}


# By identity: each is made once, and what is known of it is kept.
@dataclass(frozen=True, eq=False)
class Cell:
    """A row of one of the paper's tables."""

    table: int  # 1-10
    row: str  # its label in the paper
    dataset: str  # imagenet, cifar10 or voc0712
    network: str  # such as mobilenet_v2_cifar
    width: float  # factor on the channels
    attention: str  # static, SE, SB or DyConv
    placement: str | None  # layers of a block, such as expand+project
    settings: dict[str, Any]  # the ablated arguments of the attention
    # The paper's numbers: params_m and madds_m in millions, top1 or
    # map_percent in percent with std over runs.
    printed: dict[str, Any]

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
    def result_text(self) -> str:
        """The paper's result as it prints it."""
        if self.result is None:
            return '/'
        std = f' ± {self.printed["std"]:.3f}' if 'std' in self.printed else ''
        return f'{self.result:.3f}{std}'

    @property
    def config(self) -> str:
        """Config file, relative to the repository."""
        network = self.network.removesuffix('_cifar').replace('_v2', 'v2')
        name = f'{network}-{self.attention.lower()}-w{self.width}'
        return f'configs/{self.spec.folder}/{name}{self.spec.suffix}'

    @property
    def overrides(self) -> dict[str, Any]:
        """What differs from the config, by dotted keys."""
        changed = {
            f'model.backbone.attention.{name}': value
            for name, value in self.settings.items()
            if value != _DEFAULTS[name]
        }
        # SE stands behind the blocks in its leaves for ImageNet.
        se = self.network == 'mobilenet_v2' and self.attention == 'SE'
        place = 'block' if se else 'expand+depthwise+project'
        if self.placement and self.placement != place:
            layers = self.placement.split('+')
            changed['model.backbone.attention_layers'] = layers
        return changed

    @property
    def experiment(self) -> str:
        """What is trained: equal for cells that several tables repeat."""
        return ' '.join([self.config, *as_options(self.overrides)])

    def resolve(
        self, options: Mapping[str, Any] | None = None, **folders
    ) -> Config:
        """Return the config with overrides and options merged in."""
        # With torch, which takes seconds: tables and records need none.
        from sb_mm.engine.config import load_config

        merged = {**self.overrides, **(options or {})}
        return load_config(
            str(product_root() / self.config), merged, **folders
        )


def as_options(overrides: Mapping[str, Any]) -> list[str]:
    """Return overrides as ``--cfg-options`` takes them."""
    return [
        f'{name}=[{",".join(map(str, value))}]'
        if isinstance(value, (list, tuple))
        else f'{name}={value}'
        for name, value in overrides.items()
    ]


@cache
def load_cells() -> dict[str, Cell]:
    """Return every cell by its id, in the paper's order."""
    cells = {}
    for row in map(dict, TABLES['rows']):
        row.pop('note', None)
        settings = {k: row.pop(k) for k in _DEFAULTS if k in row}
        printed = {k: row.pop(k) for k in _NUMBERS if k in row}
        cell = Cell(**row, settings=settings, printed=printed)
        cells[cell.id] = cell
    return cells


def find_cell(cell_id: str) -> Cell:
    """Return the cell of that id, or raise with the closest ones."""
    cells = load_cells()
    if cell_id not in cells:
        close = ', '.join(get_close_matches(cell_id, cells, 3, 0))
        raise UserInputError(
            f'There is no cell {cell_id!r}: did you mean {close}? '
            'tools/paper.py list shows all.'
        )
    return cells[cell_id]


def select_cells(
    table: Collection[int] = (),
    width: Collection[float] = (),
    attention: Collection[str] = (),
    cells: Collection[str] = (),
) -> list[Cell]:
    """Return the cells, all or those of the ids, that fit all that is given.

    Raise if nothing does.
    """
    selected = [find_cell(name) for name in cells] or [*load_cells().values()]
    given = dict(table=table, width=width, attention=attention)
    for name, wanted in given.items():
        known = sorted({getattr(cell, name) for cell in selected})
        if unknown := [value for value in wanted if value not in known]:
            raise UserInputError(
                f'There is no {name} {unknown[0]} here: choose from '
                f'{", ".join(map(str, known))}.'
            )
        if wanted:
            selected = [c for c in selected if getattr(c, name) in wanted]
    return selected
