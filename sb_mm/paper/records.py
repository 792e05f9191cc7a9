"""Records: one JSON line for one finished training.

A record is what the job wrote down when it was launched, see
:class:`~sb_mm.paper.job_hook.JobHook`, with its validations.
"""

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from sb_mm.errors import UserInputError, first_line
from sb_mm.files import write_in_one_step

from .cells import Cell, as_options, find_cell


@dataclass(frozen=True)
class Record:
    """A finished training.

    Attributes:
        cell: Id of the cell, see :mod:`sb_mm.paper.cells`.
        seed: Random seed.
        options: What differs from the cell's config, by dotted keys.
        train: Numbers of ``images`` and ``classes`` trained on.
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
        spec = find_cell(self.cell).spec
        if self.final is None or spec.printed != 'top1':
            return self.final is None
        chance = 1 / spec.classes
        spread = math.sqrt(chance * (1 - chance) / self.val['images'])
        return self.final < 100 * (chance + 5 * spread)

    @property
    def text(self) -> str:
        """The result in percent, and whether the training failed."""
        if self.final is None:
            return '/'
        return f'{self.final:.2f}' + (' (/)' if self.failed else '')

    def __str__(self) -> str:
        """Return the result and the time that it took."""
        return f'{self.hours:.2f} h, result (%): {self.text}'


def identity(cell: Cell, seed: int, options: dict[str, Any]) -> tuple:
    """Return what no two records share."""
    return cell.experiment, seed, tuple(sorted(as_options(options)))


def read_records(folder: Path) -> list[Record]:
    """Return what a folder's ``*.jsonl`` files hold.

    A line that is damaged or unfinished is left out, and named on stderr.

    Raises:
        UserInputError: If two lines are of one training; names both.
    """
    found: dict[tuple, tuple[str, Record]] = {}
    lines = (
        (f'{file.name} line {number}', line)
        for file in sorted(folder.glob('*.jsonl'))
        for number, line in enumerate(
            file.read_text(errors='replace').splitlines(), 1
        )
    )
    for place, line in lines:
        try:
            record = _parse(line)
        except UserInputError as error:
            print(f'left out: {place}: {error}', file=sys.stderr)
            continue
        if record.identity in found:
            raise UserInputError(
                f'{place} repeats the training of {found[record.identity][0]} '
                f'(cell {record.cell}, seed {record.seed}): remove one of '
                'them.'
            )
        found[record.identity] = place, record
    return [record for _, record in found.values()]


def _parse(line: str) -> Record:
    try:
        content = json.loads(line)
        content.pop('digest', None)  # of earlier versions
        record = Record(**content)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserInputError(
            f'this is no record ({first_line(error)}): remove it.'
        ) from error
    find_cell(record.cell)
    last = record.history[-1] if record.history else [0, None]
    if record.final is not None and last != [record.epochs, record.final]:
        raise UserInputError(
            f'the record of {record.cell}, seed {record.seed}, is of an '
            'unfinished training: remove it and train again.'
        )
    return record


def check_writable(folder: Path) -> None:
    """Raise before long work, if no record can be written into a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / '.lock').touch()
    except OSError as error:
        raise UserInputError(
            f'--results {folder} cannot be written to ({error.strerror}): '
            'choose another folder.'
        ) from error


def append_record(record: Record, folder: Path) -> Record:
    """Add a record to ``<folder>/table<N>.jsonl``, and return it.

    If another process was faster, return the one that is there.
    """
    file = folder / f'table{find_cell(record.cell).table}.jsonl'
    with FileLock(folder / '.lock'):
        for other in read_records(folder):
            if other.identity == record.identity:
                return other
        lines = file.read_text().splitlines() if file.is_file() else []
        lines.append(json.dumps(asdict(record)))
        write_in_one_step(file, '\n'.join(lines) + '\n')
    return record


def full_trainings(cell: Cell, records: Iterable[Record]) -> list[Record]:
    """Return those of a cell, shared by the cells that repeat it."""
    same = (r for r in records if r.experiment == cell.experiment)
    return [record for record in same if record.is_full]
