"""Result records: one JSON line for one finished training."""

import hashlib
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from sb_mm.errors import UserInputError, first_few
from sb_mm.files import repository

from .cells import Cell, find_cell
from .runs import Start, deviations, execution, read_history, read_starts

RESULTS = (repository() or Path()) / 'results'
# Fields that the training itself wrote down.
_FROM_RUN_INFO = (
    'seed',
    'processes',
    'parameters',
    'hardware',
    'versions',
    'commit',
    'date',
)
# What may change with a resume.
_OF_A_START = ('start_epoch', 'hardware', 'versions', 'commit', 'date')
# Classes, of which a network that learnt nothing names the right one by
# chance, and the images on which it is measured. A mean AP has no such
# value.
_CHANCE = {'imagenet': (1000, 50_000), 'cifar10': (10, 10_000)}


@dataclass(frozen=True)
class Record:
    """What one training gave.

    Attributes:
        cell: Id of the cell, see :mod:`sb_mm.paper.cells`.
        config: Config file, relative to the repository.
        overrides: Overrides of the cell, as ``key=value``.
        deviations: What the run did otherwise, as ``key=value``: settings,
            data, batch; empty if it is the paper's recipe. A run that
            deviates is never put beside the paper's number.
        seed: Random seed.
        processes: That trained together.
        epochs: Epochs trained, or planned if it diverged.
        history: ``[epoch, metric]`` of every validation, in percent.
        final: The metric of the last epoch, in percent; None if the loss
            became infinite or NaN before it.
        parameters: Learnable numbers.
        hours: Wall time of the training's iterations, without validation.
        hardware: GPU, or processor.
        versions: Of Python and the packages.
        commit: Of this repository, with ``+`` if its code was changed.
        date: Of the last (re)start, ISO.
        execution: How it was computed, see
            :func:`~sb_mm.paper.runs.execution`; empty where that was not
            noted.
        earlier_starts: Of a resumed run: what it was computed on and with
            before, start by start, each with its ``start_epoch``.
    """

    cell: str
    config: str
    overrides: list[str]
    deviations: list[str]
    seed: int
    processes: int
    epochs: int
    history: list[list[float]]
    final: float | None
    parameters: int
    hours: float
    hardware: str
    versions: dict[str, str]
    commit: str
    date: str
    execution: dict[str, Any] = field(default_factory=dict)
    earlier_starts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def experiment(self) -> str:
        """What was trained, see :class:`~sb_mm.paper.cells.Cell`."""
        return find_cell(self.cell).experiment

    @property
    def diverged(self) -> bool:
        """Whether the training failed, which the paper prints as "/".

        The loss was not finite at some time, or the network names no more
        classes right than chance does (5 standard deviations above it).
        """
        dataset = find_cell(self.cell).dataset
        if self.final is None or dataset not in _CHANCE:
            return self.final is None
        classes, images = _CHANCE[dataset]
        images = self._val_images() or images
        share = 1 / classes
        spread = math.sqrt(share * (1 - share) / images)
        return self.final < 100 * (share + 5 * spread)

    def _val_images(self) -> int | None:
        """Return how many there were, if not the paper's."""
        for changed in self.deviations:
            if changed.startswith('val images='):
                return int(changed.split('=')[1])
        return None

    def to_line(self) -> str:
        """Return the JSON line, without the line break.

        ``digest``, at its end, tells whether the line was edited since.
        """
        content = asdict(self)
        return json.dumps({**content, 'digest': _digest(content)})


def _digest(content: dict) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Results(NamedTuple):
    """What lies in a folder of records.

    Attributes:
        records: Those that can be used.
        refused: A sentence for each line that cannot: it is in no table.
    """

    records: list[Record]
    refused: list[str]


def read_results(folder: Path = RESULTS) -> Results:
    """Return what a folder's ``*.jsonl`` files hold.

    Raises:
        UserInputError: If two lines are of one run (cell, deviations and
            seed); names both.
    """
    places: dict[tuple, str] = {}
    results = Results([], [])
    for file in sorted(folder.glob('*.jsonl')):
        for number, line in enumerate(_lines(file), 1):
            place = f'{file.name} line {number}'
            try:
                record = _parse(line, place)
            except UserInputError as error:
                results.refused.append(str(error))
                continue
            key = _key(record)
            if key in places:
                raise UserInputError(
                    f'{place} repeats the run of {places[key]} (cell '
                    f'{record.cell}, seed {record.seed}): remove one of them.'
                )
            places[key] = place
            results.records.append(record)
    return results


def _lines(file: Path) -> list[str]:
    # What is no text is refused as a line that is no JSON.
    return file.read_text(errors='replace').splitlines()


def read_records(folder: Path = RESULTS) -> list[Record]:
    """Return the usable records of a folder, see :func:`read_results`."""
    return read_results(folder).records


def _key(record: Record) -> tuple:
    """Return what no two records may share; tables repeat experiments."""
    return record.experiment, tuple(record.deviations), record.seed


def _parse(line: str, place: str) -> Record:
    try:
        content = json.loads(line)
        digest = content.pop('digest')
        record = Record(**content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        names = ', '.join(f.name for f in fields(Record))
        raise UserInputError(
            f'{place} is not a record of one training ({error}): it needs '
            f'exactly {names} and digest.'
        ) from error
    if digest != _digest(content):
        raise UserInputError(
            f'{place} ({record.cell}, seed {record.seed}) was edited after '
            'the run: record it again from its work directory.'
        )
    cell = find_cell(record.cell)
    if (record.config, record.overrides) != (cell.config, cell.options()):
        raise UserInputError(
            f'{place} is not of the cell {record.cell} as it is now: its '
            f'config is {record.config} {record.overrides}.'
        )
    last = record.history[-1] if record.history else [0, None]
    if record.final is not None and last != [record.epochs, record.final]:
        raise UserInputError(
            f'{place} ({record.cell}, seed {record.seed}) is unfinished: its '
            f'last validation is {last} and not of epoch {record.epochs}.'
        )
    return record


@dataclass(frozen=True)
class Summary:
    """Runs of one experiment and one recipe, over seeds."""

    records: list[Record]

    @property
    def finals(self) -> list[float]:
        """The results of those that did not diverge, in percent."""
        return [r.final for r in self.records if not r.diverged]

    @property
    def diverged(self) -> int:
        """How many did."""
        return len(self.records) - len(self.finals)

    @property
    def mean(self) -> float | None:
        """Mean of the final metric, in percent; None if all diverged."""
        return statistics.fmean(self.finals) if self.finals else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for less than two runs."""
        return statistics.stdev(self.finals) if len(self.finals) > 1 else None


def summarize(cell: Cell, records: Iterable[Record]) -> Summary | None:
    """Return the runs of a cell's experiment with the paper's recipe.

    Cells that several tables repeat share their runs.
    """
    same = [
        r
        for r in records
        if r.experiment == cell.experiment and not r.deviations
    ]
    return Summary(same) if same else None


def reduced_runs(cell: Cell, records: Iterable[Record]) -> list[Record]:
    """Return the runs of a cell's experiment with another recipe."""
    return [
        r for r in records if r.experiment == cell.experiment and r.deviations
    ]


def record_run(cell: Cell, work_dir: Path, variant: bool = False) -> Record:
    """Make the record of a finished training.

    Args:
        cell: What was trained.
        work_dir: Where ``tools/train.py`` wrote the run.
        variant: Accept a network that is meant to differ from the cell's.

    Raises:
        UserInputError: If the folder holds no finished run of this cell.
    """
    starts = read_starts(work_dir)
    last = starts[-1]
    changed = deviations(cell, last)
    if not variant:
        _check_network(cell, work_dir, changed)
    history, hours = read_history(starts, cell)
    epochs = last.config.train_cfg.max_epochs
    finished = history and history[-1][0] == epochs
    if not finished and not last.diverged:
        raise UserInputError(
            f'The run in {work_dir} has no validation of its last epoch '
            f'({epochs}): finish it with --resume.'
        )
    return Record(
        cell=cell.id,
        config=cell.config,
        overrides=cell.options(),
        deviations=changed,
        epochs=epochs,
        history=history,
        final=None if last.diverged else history[-1][1],
        hours=round(hours, 3),
        **{k: last.info[k] for k in _FROM_RUN_INFO},
        execution=execution(last.config),
        earlier_starts=[_describe(start) for start in starts[:-1]],
    )


def _describe(start: Start) -> dict[str, Any]:
    known = {key: start.info[key] for key in _OF_A_START}
    return dict(known, execution=execution(start.config))


def _check_network(cell: Cell, work_dir: Path, changed: list[str]) -> None:
    """Raise if the run is of another network, but for the data's classes."""
    other = [
        c
        for c in changed
        if c.startswith('model.')
        and '.num_classes=' not in c
        and not c.startswith('model.data_preprocessor.')
    ]
    if other:
        raise UserInputError(
            f'The run in {work_dir} is of another network than {cell.id} '
            f'({first_few(other)}): record it under its own cell.'
        )


def append_record(record: Record, folder: Path = RESULTS) -> Path:
    """Add a record to ``<folder>/table<N>.jsonl``.

    Raises:
        UserInputError: If the run is there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Several processes may finish their runs at once.
    with FileLock(folder / '.lock'):
        for other in read_records(folder):
            if _key(other) == _key(record):
                raise UserInputError(
                    f'{_file(folder, other)} has the run with seed '
                    f'{record.seed} already, as {other.cell} '
                    f'({first_few(record.deviations) or "full recipe"}): to '
                    'record it again, delete that line first.'
                )
        file = _file(folder, record)
        # A line that was cut stays one of its own.
        cut = file.is_file() and not file.read_bytes().endswith(b'\n')
        with file.open('a') as stream:
            stream.write(('\n' if cut else '') + record.to_line() + '\n')
    return file


def _file(folder: Path, record: Record) -> Path:
    return folder / f'table{find_cell(record.cell).table}.jsonl'
