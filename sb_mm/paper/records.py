"""Result records: one JSON line for one finished training."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sb_mm.errors import UserInputError, first_few

from .cells import REPOSITORY, Cell, find_cell
from .runs import deviations, read_history, read_starts

RESULTS = REPOSITORY / 'results'
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
        epochs: Epochs trained.
        history: ``[epoch, metric]`` of every validation, in percent.
        final: The metric of the last epoch, in percent.
        parameters: Learnable numbers.
        hours: Wall time of the training.
        hardware: GPU, or processor.
        versions: Of Python and the packages.
        commit: Of this repository, with ``+`` if its code was changed.
        date: Of the last (re)start, ISO.
    """

    cell: str
    config: str
    overrides: list[str]
    deviations: list[str]
    seed: int
    processes: int
    epochs: int
    history: list[list[float]]
    final: float
    parameters: int
    hours: float
    hardware: str
    versions: dict[str, str]
    commit: str
    date: str

    def to_line(self) -> str:
        """Return the JSON line, without the line break."""
        return json.dumps(asdict(self))


def read_records(folder: Path = RESULTS) -> list[Record]:
    """Return every record of a folder's ``*.jsonl`` files.

    Raises:
        UserInputError: If a line is no complete record, names no cell, or
            repeats the run (cell, deviations and seed) of another one; names
            file and line.
    """
    records: dict[tuple, str] = {}
    found = []
    for file in sorted(folder.glob('*.jsonl')):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            place = f'{file.name} line {number}'
            record = _parse(line, place)
            key = _key(record)
            if key in records:
                raise UserInputError(
                    f'{place} repeats the run of {records[key]} (cell '
                    f'{record.cell}, seed {record.seed}): remove one of them.'
                )
            records[key] = place
            found.append(record)
    return found


def _key(record: Record) -> tuple:
    """Return what no two records may share; tables repeat experiments."""
    experiment = find_cell(record.cell).experiment
    return experiment, tuple(record.deviations), record.seed


def _parse(line: str, place: str) -> Record:
    try:
        content = json.loads(line)
        record = Record(**content)
    except (ValueError, TypeError) as error:
        names = ', '.join(f.name for f in fields(Record))
        raise UserInputError(
            f'{place} is not a record of one training ({error}): it needs '
            f'exactly {names}.'
        ) from error
    cell = find_cell(record.cell)
    if (record.config, record.overrides) != (cell.config, cell.options()):
        raise UserInputError(
            f'{place} is not of the cell {record.cell} as it is now: its '
            f'config is {record.config} {record.overrides}.'
        )
    if not record.history or record.history[-1][1] != record.final:
        raise UserInputError(
            f'{place} was edited or is unfinished: final is not the last '
            'entry of history.'
        )
    return record


@dataclass(frozen=True)
class Summary:
    """Full-recipe runs of one experiment, over seeds."""

    records: list[Record]

    @property
    def mean(self) -> float:
        """Mean of the final metric, in percent."""
        return statistics.fmean(r.final for r in self.records)

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for a single run."""
        values = [r.final for r in self.records]
        return statistics.stdev(values) if len(values) > 1 else None


def summarize(cell: Cell, records: Iterable[Record]) -> Summary | None:
    """Return the runs of a cell's experiment with the paper's recipe.

    Cells that several tables repeat share their runs.
    """
    same = [
        r
        for r in records
        if find_cell(r.cell).experiment == cell.experiment and not r.deviations
    ]
    return Summary(same) if same else None


def reduced_runs(cell: Cell, records: Iterable[Record]) -> list[Record]:
    """Return the runs of a cell's experiment with another recipe."""
    return [
        r
        for r in records
        if find_cell(r.cell).experiment == cell.experiment and r.deviations
    ]


def record_run(cell: Cell, work_dir: Path) -> Record:
    """Make the record of a finished training.

    Args:
        cell: What was trained.
        work_dir: Where ``tools/train.py`` wrote the run.

    Raises:
        UserInputError: If the folder holds no finished run of this cell.
    """
    starts = read_starts(work_dir)
    last = starts[-1]
    changed = deviations(cell, last)
    _check_network(cell, work_dir, changed)
    history, hours = read_history(starts, cell)
    epochs = last.config.train_cfg.max_epochs
    if not history or history[-1][0] != epochs:
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
        final=history[-1][1],
        hours=round(hours, 3),
        **{k: last.info[k] for k in _FROM_RUN_INFO},
    )


def _check_network(cell: Cell, work_dir: Path, changed: list[str]) -> None:
    """Raise if the run is of another network, but for the data's classes."""
    other = [
        c
        for c in changed
        if c.startswith('model.') and '.num_classes=' not in c
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
    known = read_records(folder) if folder.is_dir() else []
    for other in known:
        if _key(other) == _key(record):
            raise UserInputError(
                f'{_file(folder, other)} has the run with seed {record.seed} '
                f'already, as {other.cell} '
                f'({first_few(record.deviations) or "full recipe"}): to '
                'record it anew, delete that line first.'
            )
    folder.mkdir(exist_ok=True)
    file = _file(folder, record)
    with file.open('a') as stream:
        stream.write(record.to_line() + '\n')
    return file


def _file(folder: Path, record: Record) -> Path:
    return folder / f'table{find_cell(record.cell).table}.jsonl'
