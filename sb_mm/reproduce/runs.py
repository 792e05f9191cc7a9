"""The runs of a reproduction: which there are, and what became of them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from sb_mm.errors import UserInputError, first_few
from sb_mm.paper.cells import Cell
from sb_mm.paper.records import Record, record_run
from sb_mm.paper.runs import (
    config_differences,
    count_data,
    data_differences,
    expected_deviations,
    find_starts,
    has_expected_data,
    planned_deviations,
    whole_lines,
    without_data,
)

from .recipe import Recipe

# The last lines of a log hold the last value of everything.
_TAIL_BYTES = 8192


# By identity: two runs are never equal.
@dataclass(frozen=True, eq=False)
class Run:
    """One training of one cell.

    Attributes:
        cell: What is trained.
        seed: Of the training.
        recipe: How.
        root: Folder of all reproductions.
    """

    cell: Cell
    seed: int
    recipe: Recipe
    root: Path

    @property
    def name(self) -> str:
        """Such as ``t6-x0.35-sb seed 0``."""
        return f'{self.cell.id} seed {self.seed}'

    @property
    def work_dir(self) -> Path:
        """Folder of its log and checkpoints."""
        folder = self.root / self.recipe.name / self.cell.id
        return folder / f'seed{self.seed}'

    @property
    def log(self) -> Path:
        """What the training printed."""
        return self.work_dir / 'train.log'

    def config(self) -> Config:
        """Return what is trained; see :meth:`Recipe.config`."""
        return self.recipe.config(self.cell, self.seed, self.work_dir)

    def result(self) -> Record | None:
        """Return the record of a finished training, None for another."""
        try:
            return self.record()
        except UserInputError:
            return None

    def record(self) -> Record:
        """Return the record of the training.

        Raises:
            UserInputError: If it is not finished.
        """
        return record_run(self.cell, self.work_dir, self.recipe.is_variant)

    def find_in(self, records: Iterable[Record]) -> Record | None:
        """Return the record of this run, if it was recorded already.

        Cells that several tables repeat share their runs. A record of other
        data than the recipe tells of is its own if it has those data, which
        are counted then.

        Raises:
            UserInputError: If they cannot be used.
        """
        wanted = (self.cell.experiment, self.seed)
        same = [r for r in records if (r.experiment, r.seed) == wanted]
        if not same:
            return None
        changed = expected_deviations(self.cell, self.config())
        like = [r for r in same if without_data(r.deviations) == changed]
        expected = [r for r in like if has_expected_data(r.deviations)]
        if expected or not like:
            return expected[0] if expected else None
        own = planned_deviations(self.cell, self.config())
        return next((r for r in like if r.deviations == own), None)

    def check_resume(self) -> None:
        """Raise if its folder holds checkpoints of another training.

        Raises:
            UserInputError: Names the settings or data that differ, or says
                why the data cannot be used.
        """
        starts = [s for s in find_starts(self.work_dir) if s.has_info]
        if not starts or not list(self.work_dir.glob('epoch_*.pth')):
            return
        last, cfg = starts[-1], self.config()
        other = config_differences(last.config, cfg)
        other = other or data_differences(last.info, count_data(cfg))
        if other:
            raise UserInputError(
                f'{self.work_dir} holds a training with other settings or '
                f'data ({first_few(other)}): delete that folder, or give '
                'another --out.'
            )

    def progress(self) -> 'Progress':
        """Read how far the training is."""
        starts = find_starts(self.work_dir)
        if not starts:
            return Progress()
        start = starts[-1]
        lines = _tail(start.folder / 'vis_data/scalars.json')
        try:
            return _progress(lines, start.info)
        except UserInputError:  # not written yet, or damaged
            return _progress(lines, {})


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        epochs: Finished, with the fraction of the current one.
        loss: The newest one.
        metric: Of the newest validation, in percent.
    """

    epochs: float = 0.0
    loss: float = math.nan
    metric: float = math.nan


def _tail(file: Path) -> list[dict]:
    """Return the last whole lines of a log."""
    if not file.is_file():
        return []
    with file.open('rb') as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _TAIL_BYTES))
        text = stream.read().decode(errors='ignore')
    return list(whole_lines(text))


def _progress(lines: list[dict], info: dict) -> Progress:
    epochs = loss = metric = math.nan
    for line in lines:
        if 'loss' in line:
            loss = line['loss']
            epochs = line['step'] / _iterations(info)
        for key in ('accuracy/top1', 'pascal_voc/mAP'):
            if key in line:
                metric = line[key] * (1 if 'top1' in key else 100)
                epochs = line['step']
    return Progress(0.0 if math.isnan(epochs) else epochs, loss, metric)


def _iterations(info: dict) -> float:
    """Return how many batches make an epoch."""
    if not info.get('train'):
        return math.inf
    return math.ceil(info['train']['images'] / info['batch'])


def plan_runs(
    cells: Sequence[Cell], seeds: Sequence[int], recipe: Recipe, root: Path
) -> list[Run]:
    """Return a run for each distinct experiment and seed.

    The first seed of every cell comes first, so that a reproduction that is
    cut has something of everything.
    """
    distinct: dict[tuple, Cell] = {}
    for cell in cells:
        distinct.setdefault(cell.experiment, cell)
    return [
        Run(cell, s, recipe, root) for s in seeds for cell in distinct.values()
    ]
