"""Records: one JSON line for one finished training.

A record is what the job wrote down when it was launched, see
:class:`~sb_mm.paper.train.JobHook`, with its validations.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from sb_mm.errors import UserInputError, first_line

from .cells import Cell, as_options, find_cell


@dataclass(frozen=True)
class Record:
    """A finished training.

    Attributes:
        cell: Id of the cell, see :mod:`sb_mm.paper.cells`.
        seed: Random seed.
        options: What differs from the cell's config, by dotted keys.
        train: What was trained on, see
            :func:`~sb_mm.paper.datasets.describe_data`.
        val: The same of the images that the metric was measured on.
        epochs: Of the whole training.
        batch: Images in a step.
        parameters: Learnable numbers.
        starts: Where and when it was computed: ``epoch`` at the start,
            ``date``, ``execution`` and ``environment``. Several if it was
            resumed.
        history: ``[epoch, metric]`` of every validation, in percent.
        final: The metric of the last epoch; None if the loss became infinite
            or NaN before it.
        hours: Wall time of the training, without validation.
        note: What must be known of it besides.
    """

    cell: str
    seed: int
    options: dict[str, Any]
    train: dict[str, Any]
    val: dict[str, Any]
    epochs: int
    batch: int
    parameters: int
    starts: list[dict[str, Any]]
    history: list[list[float]]
    final: float | None
    hours: float
    note: str = ''

    @property
    def identity(self) -> tuple:
        """What no two records share; cells that tables repeat are one."""
        return identity(find_cell(self.cell), self.seed, self.options)

    @property
    def experiment(self) -> str:
        """What was trained, see :class:`~sb_mm.paper.cells.Cell`."""
        return find_cell(self.cell).experiment

    @property
    def is_full(self) -> bool:
        """Whether it is the paper's recipe on the paper's data."""
        spec = find_cell(self.cell).spec
        sizes = self.train['images'], self.val['images'], self.train['classes']
        paper = spec.train_images, spec.val_images, spec.classes
        return not self.options and sizes == paper

    @property
    def failed(self) -> bool:
        """Whether it failed to train, which the paper prints as "/".

        The loss was not finite at some time, or the network names no more
        classes right than chance does (5 standard deviations above it).
        """
        chance = find_cell(self.cell).spec.chance
        if self.final is None or chance is None:
            return self.final is None
        spread = math.sqrt(chance * (1 - chance) / self.val['images'])
        return self.final < 100 * (chance + 5 * spread)

    def to_line(self) -> str:
        """Return the JSON line, without the line break.

        ``digest``, at its end, tells whether the line was edited since.
        """
        content = asdict(self)
        return json.dumps({**content, 'digest': _digest(content)})


def identity(cell: Cell, seed: int, options: dict[str, Any]) -> tuple:
    """Return what no two records share."""
    return cell.experiment, seed, tuple(sorted(as_options(options)))


def _digest(content: dict) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Results(NamedTuple):
    """What lies in a folder of records.

    Attributes:
        records: Those that can be used.
        refused: A sentence for each line that cannot.
    """

    records: list[Record]
    refused: list[str]


def read_results(folder: Path) -> Results:
    """Return what a folder's ``*.jsonl`` files hold.

    Raises:
        UserInputError: If two lines are of one training; names both.
    """
    places: dict[tuple, str] = {}
    results = Results([], [])
    for file in sorted(folder.glob('*.jsonl')):
        lines = file.read_text(errors='replace').splitlines()
        for number, line in enumerate(lines, 1):
            place = f'{file.name} line {number}'
            try:
                record = _parse(line, place)
            except UserInputError as error:
                results.refused.append(str(error))
                continue
            if record.identity in places:
                raise UserInputError(
                    f'{place} repeats the training of '
                    f'{places[record.identity]} (cell {record.cell}, seed '
                    f'{record.seed}): remove one of them.'
                )
            places[record.identity] = place
            results.records.append(record)
    return results


def _parse(line: str, place: str) -> Record:
    try:
        content = json.loads(line)
        digest = content.pop('digest')
        record = Record(**content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserInputError(
            f'{place} is not a record ({first_line(error)}): remove it.'
        ) from error
    what = f'{place} ({record.cell}, seed {record.seed})'
    if digest != _digest(content):
        raise UserInputError(
            f'{what} was edited after the training: remove it and train again.'
        )
    find_cell(record.cell)
    last = record.history[-1] if record.history else [0, None]
    if record.final is not None and last != [record.epochs, record.final]:
        raise UserInputError(
            f'{what} is unfinished: its last validation is {last} and not of '
            f'epoch {record.epochs}.'
        )
    return record


def append_record(record: Record, folder: Path) -> Record:
    """Add a record to ``<folder>/table<N>.jsonl``.

    Returns:
        The record; the one that is there, if another process was faster.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / '.lock'):
        for other in read_results(folder).records:
            if other.identity == record.identity:
                return other
        file = folder / f'table{find_cell(record.cell).table}.jsonl'
        # Behind a line that was cut, it is whole on one of its own.
        cut = file.is_file() and not file.read_bytes().endswith(b'\n')
        with file.open('a') as stream:
            stream.write(('\n' if cut else '') + record.to_line() + '\n')
    return record


@dataclass(frozen=True)
class Summary:
    """Trainings that differ in the seed alone."""

    records: list[Record]

    @property
    def finals(self) -> list[float]:
        """The results of those that did not fail, in percent."""
        return [r.final for r in self.records if not r.failed]

    @property
    def mean(self) -> float | None:
        """Of the results, in percent; None if all failed."""
        return statistics.fmean(self.finals) if self.finals else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for less than two results."""
        return statistics.stdev(self.finals) if len(self.finals) > 1 else None

    def __str__(self) -> str:
        """Return mean and standard deviation, and how many failed."""
        if self.mean is None:
            return '/'
        text = f'{self.mean:.3f}'
        text += '' if self.std is None else f' ± {self.std:.3f}'
        failed = len(self.records) - len(self.finals)
        if failed:
            text += f' ({failed} of {len(self.records)} runs: /)'
        return text


def summarize(cell: Cell, records: Iterable[Record]) -> Summary | None:
    """Return the full trainings of a cell, shared by cells that repeat it."""
    same = [
        r for r in records if r.experiment == cell.experiment and r.is_full
    ]
    return Summary(same) if same else None
