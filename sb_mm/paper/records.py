"""Result records: one JSON line for one finished training."""

import json
import platform
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from sb_mm.engine.config import read_config
from sb_mm.errors import UserInputError, first_few

from .cells import REPOSITORY, Cell, find_cell

RESULTS = REPOSITORY / 'results'
# Key of the metric in MMEngine's scalars, and its factor to percent.
_METRICS = {
    'imagenet': ('accuracy/top1', 1),
    'cifar10': ('accuracy/top1', 1),
    'voc0712': ('pascal_voc/mAP', 100),
}
# Settings that do not change what is computed, or are recorded elsewhere.
_IRRELEVANT = (
    'auto_scale_lr',
    'custom_hooks',
    'custom_imports',
    'data_root',
    'dataset_type',
    'default_hooks',
    'env_cfg',
    'launcher',
    'load_from',
    'log_level',
    'log_processor',
    'randomness',
    'resume',
    'train_pipeline',
    'test_pipeline',
    'vis_backends',
    'visualizer',
    'work_dir',
    'test_',
)
_IRRELEVANT_ENDS = (
    'data_root',
    'num_workers',
    'persistent_workers',
    'dataset.type',
    'download',
)
_PACKAGES = ('torch', 'torchvision', 'mmcv', 'mmengine', 'mmdet', 'mmpretrain')
_ONEDL = dict(mmdet='onedl-mmdetection')


@dataclass(frozen=True)
class Record:
    """What one training gave.

    Attributes:
        cell: Id of the cell, see :mod:`sb_mm.paper.cells`.
        config: Config file, relative to the repository.
        overrides: Overrides of the cell, as ``key=value``.
        deviations: What this run changed beyond them, as ``key=value``;
            empty if it is the paper's recipe. A run that deviates is never
            put beside the paper's number.
        seed: Random seed; None if the run drew one.
        epochs: Epochs trained.
        history: ``[epoch, metric]`` of every validation, in percent.
        final: The metric of the last epoch, in percent.
        parameters: Learnable numbers.
        hours: Wall time of the training.
        hardware: GPU, or processor.
        versions: Of Python and the packages.
        commit: Of this repository, with ``+`` if files were changed.
        date: Of the last (re)start, ISO.
    """

    cell: str
    config: str
    overrides: list[str]
    deviations: list[str]
    seed: int | None
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
            key = (record.cell, *record.deviations, record.seed)
            if key in records:
                raise UserInputError(
                    f'{place} repeats the run of {records[key]} (cell '
                    f'{record.cell}, seed {record.seed}): remove one of them.'
                )
            records[key] = place
            found.append(record)
    return found


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


def record_run(cell: Cell, work_dir: Path, parameters: int) -> Record:
    """Make the record of a finished training.

    Args:
        cell: What was trained.
        work_dir: Where ``tools/train.py`` wrote the run.
        parameters: Size of the cell's network.

    Raises:
        UserInputError: If the folder holds no finished run.
    """
    configs = sorted(work_dir.glob('*.py'), key=lambda p: p.stat().st_mtime)
    if not configs:
        raise UserInputError(
            f'{work_dir} holds no config of a run: give the work directory '
            'of tools/train.py.'
        )
    cfg = read_config(str(configs[-1]))
    history, seconds = _history(work_dir, cell)
    epochs = cfg.train_cfg.max_epochs
    if not history or history[-1][0] != epochs:
        raise UserInputError(
            f'The run in {work_dir} has no validation of its last epoch '
            f'({epochs}): finish it with --resume.'
        )
    return Record(
        cell=cell.id,
        config=cell.config,
        overrides=cell.options(),
        deviations=deviations(cell.resolve(), cfg),
        seed=cfg.get('randomness', {}).get('seed'),
        epochs=epochs,
        history=history,
        final=history[-1][1],
        parameters=parameters,
        hours=round(seconds / 3600, 3),
        hardware=_hardware(),
        versions=_versions(),
        commit=_commit(),
        date=_date(work_dir),
    )


def _history(work_dir: Path, cell: Cell) -> tuple[list[list[float]], float]:
    """Return (epoch, percent) of every validation, and seconds of training."""
    key, factor = _METRICS[cell.dataset]
    lines = [
        json.loads(line)
        for file in _scalar_files(work_dir)
        for line in file.read_text().splitlines()
    ]
    # A resumed run repeats what came after its checkpoint: the later holds.
    values = {r['step']: r[key] for r in lines if key in r}
    times = {r['step']: r['time'] for r in lines if 'loss' in r}
    history = [[e, round(v * factor, 3)] for e, v in sorted(values.items())]
    return history, _seconds(times)


def _seconds(times: dict[int, float]) -> float:
    """Sum up the logged seconds an iteration, by the iteration's number."""
    steps = sorted(times)
    spans = [b - a for a, b in pairwise([0, *steps])]
    return sum(n * times[s] for n, s in zip(spans, steps, strict=True))


def deviations(cell_cfg: Config, run_cfg: Config) -> list[str]:
    """Return the settings of a run that are not the cell's, as ``key=value``.

    Where files lie, how many workers read them, hooks and logs do not count.
    """
    wanted, given = _flat(cell_cfg), _flat(run_cfg)
    return [
        f'{key}={given.get(key)}'
        for key in sorted({*wanted, *given})
        if wanted.get(key) != given.get(key)
    ]


def _flat(cfg: Config) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def visit(path: str, value: object) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                visit(f'{path}.{key}' if path else key, child)
        elif isinstance(value, (list, tuple)):
            for i, child in enumerate(value):
                visit(f'{path}.{i}', child)
        elif not path.startswith(_IRRELEVANT) and not path.endswith(
            _IRRELEVANT_ENDS
        ):
            flat[path] = value

    visit('', cfg.to_dict())
    return flat


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'CPU, {torch.get_num_threads()} threads ({platform.machine()})'


def _versions() -> dict[str, str]:
    found = dict(python=platform.python_version())
    for name in _PACKAGES:
        for package in (name, _ONEDL.get(name, f'onedl-{name}')):
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
    return found


def _commit() -> str:
    def git(*args: str) -> str:
        done = subprocess.run(
            ['git', '-C', str(REPOSITORY), *args],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    changed = git('status', '--porcelain', '--untracked-files=no')
    return (git('rev-parse', '--short', 'HEAD') or 'unknown') + '+' * bool(
        changed
    )


def _date(work_dir: Path) -> str:
    """Return the day from the newest log folder, ``20261123_080256``."""
    day = _scalar_files(work_dir)[-1].parents[1].name[:8]
    return f'{day[:4]}-{day[4:6]}-{day[6:]}'


def _scalar_files(work_dir: Path) -> list[Path]:
    """Return the logs of a run, one for every start of it."""
    return sorted(work_dir.glob('*/vis_data/scalars.json'))


def append_record(record: Record, folder: Path = RESULTS) -> Path:
    """Add a record to ``<folder>/table<N>.jsonl``.

    Raises:
        UserInputError: If the run is there already.
    """
    known = read_records(folder) if folder.is_dir() else []
    key = (record.cell, record.deviations, record.seed)
    if key in [(r.cell, r.deviations, r.seed) for r in known]:
        raise UserInputError(
            f'{folder} has the run of {record.cell} with seed {record.seed} '
            f'already ({first_few(record.deviations) or "full recipe"}).'
        )
    folder.mkdir(exist_ok=True)
    file = folder / f'table{find_cell(record.cell).table}.jsonl'
    with file.open('a') as stream:
        stream.write(record.to_line() + '\n')
    return file
