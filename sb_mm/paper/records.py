"""Records: what a training is and what came of it.

A job's record is ``job.json`` in its folder, and in the end one line of
``results/``.
"""

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from filelock import FileLock

from sb_mm.errors import UserInputError, first_line
from sb_mm.files import write_in_one_step

from .cells import Cell, as_options, find_cell

NOT_RUN = 'not run'
# What comes of a text that is no record.
_DAMAGES = AttributeError, TypeError, ValueError


@dataclass
class Record:
    """A training of a cell."""

    cell: str  # its id
    seed: int
    options: dict[str, Any]  # what differs from its config, by dotted keys
    train: dict[str, Any]  # numbers of images and classes trained on
    val: dict[str, Any]  # of those that the metric was measured on
    epochs: int  # of the whole training
    batch: int  # images in a step
    parameters: int  # learnable numbers
    # Epoch, date, execution and environment of each start or resume.
    starts: list[dict[str, Any]] = field(default_factory=list)
    # [epoch, percent] of each validation.
    history: list[list[float]] = field(default_factory=list)
    # After the last epoch; None before it, and if the loss was not finite.
    final: float | None = None
    hours: float = 0.0  # with what a resume repeated
    note: str = ''  # what must be known of it besides

    @property
    def identity(self) -> tuple:
        """What no two records share; cells that tables repeat are one."""
        return identity(find_cell(self.cell), self.seed, self.options)

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

        The loss was not finite, or the network is no better than chance (by
        5 standard deviations).
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

    def write(self, folder: Path) -> None:
        """Write the ``job.json`` of a job's folder."""
        text = json.dumps(asdict(self), indent=1) + '\n'
        write_in_one_step(folder / 'job.json', text)

    def __str__(self) -> str:
        """Return the result and the time that it took."""
        return f'{self.hours:.2f} h, result (%): {self.text}'


def identity(cell: Cell, seed: int, options: dict[str, Any]) -> tuple:
    """Return what no two records share."""
    return cell.experiment, seed, tuple(sorted(as_options(options)))


def read_job(folder: Path) -> Record | None:
    """Return what a folder's ``job.json`` says; None if there is none."""
    file = folder / 'job.json'
    try:
        return _parse(file.read_text())
    except FileNotFoundError:
        return None
    except _DAMAGES as error:
        raise UserInputError(
            f'{file} is damaged or of another version: delete the folder '
            f'{folder} to train again.'
        ) from error


def read_records(folder: Path) -> list[Record]:
    """Return what a folder's ``*.jsonl`` files hold.

    Lines that are no record, or another one of a training, are left out, and
    named on stderr.
    """
    found: dict[tuple, Record] = {}
    for file in sorted(folder.glob('*.jsonl')):
        lines = file.read_text(errors='replace').splitlines()
        for number, line in enumerate(lines, 1):
            try:
                record = _parse(line)
                if found.setdefault(record.identity, record) is not record:
                    raise ValueError('that training has a record already')
            except _DAMAGES as error:
                print(
                    f'left out: {file.name} line {number}, which is no record '
                    f'({first_line(error)}): remove it.',
                    file=sys.stderr,
                )
    return list(found.values())


def find_record(folder: Path, identity: tuple) -> Record | None:
    """Return the record of an identity; None if there is none."""
    records = read_records(folder)
    return next((r for r in records if r.identity == identity), None)


def _parse(line: str) -> Record:
    content = json.loads(line)
    content.pop('digest', None)  # of earlier versions
    record = Record(**content)
    last = [record.epochs, record.final]
    if record.final is not None and record.history[-1:] != [last]:
        raise ValueError('the training is unfinished')
    return record


def append_record(record: Record, folder: Path) -> Record:
    """Add a record to ``<folder>/table<N>.jsonl`` unless it has one.

    Return that which is there then.
    """
    file = folder / f'table{find_cell(record.cell).table}.jsonl'
    with FileLock(folder / '.lock'):
        if other := find_record(folder, record.identity):
            return other
        lines = file.read_text().splitlines() if file.is_file() else []
        lines.append(json.dumps(asdict(record)))
        write_in_one_step(file, '\n'.join(lines) + '\n')
    return record


def full_trainings(cell: Cell, records: Iterable[Record]) -> list[Record]:
    """Return those of a cell, shared by the cells that repeat it."""
    wanted = cell.experiment
    return [r for r in records if r.is_full and r.identity[0] == wanted]


def results_of(records: Iterable[Record]) -> list[float]:
    """Return the results of those that did not fail, in percent."""
    return [record.final for record in records if not record.failed]


def summary(records: Sequence[Record]) -> str:
    """Return mean and sample standard deviation, and how many failed."""
    if not records:
        return NOT_RUN
    finals = results_of(records)
    if not finals:
        return '/'
    text = f'{fmean(finals):.3f}'
    if len(finals) > 1:
        text += f' ± {stdev(finals):.3f}'
    if failed := len(records) - len(finals):
        text += f' ({failed} of {len(records)} runs: /)'
    return text
