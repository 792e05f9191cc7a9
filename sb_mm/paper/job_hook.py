"""What a training writes down of itself, and its record when it is done."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils.dl_utils import collect_env

from sb_mm.engine.environment import commit, hardware, versions
from sb_mm.errors import UserInputError
from sb_mm.files import write_in_one_step
from sb_mm.registry import HOOKS

from .datasets import describe_data
from .records import Record

_JOB_FILE, _HISTORY_FILE = 'job.json', 'history.jsonl'


@HOOKS.register_module()
class JobHook(Hook):
    """Write down what is trained, before it is, and each validation.

    ``job.json`` gets the job, its data, size and epochs, and for each start
    the environment; ``history.jsonl`` a line for each epoch's seconds and
    each validation's metric.

    Args:
        job: What :class:`Job` says of itself.
        execution: How it is computed.
        metric: Name of the result.
        factor: From that to percent.

    Raises:
        UserInputError: Before the training, if the folder is that of another
            job, or the data are not what they were.
    """

    def __init__(
        self,
        job: dict[str, Any],
        execution: dict[str, Any],
        metric: str,
        factor: float,
    ) -> None:
        self.job = dict(job)
        self.execution = dict(execution)
        self.metric = metric
        self.factor = factor

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Write ``job.json``; forget what the training repeats."""
        folder = Path(runner.work_dir)
        job = {**self.job, **_describe(runner)}
        before = read_job(folder) or job
        starts = before.pop('starts', [])
        if before != job:
            other = next(k for k in job if before.get(k) != job[k])
            raise UserInputError(
                f'{folder} holds another training ({other}: '
                f'{before.get(other)}, now {job[other]}): delete that '
                'folder, or give another --out.'
            )
        starts = [s for s in starts if s['epoch'] < runner.epoch]
        job['starts'] = [*starts, self._start(runner.epoch)]
        text = json.dumps(job, indent=1) + '\n'
        write_in_one_step(folder / _JOB_FILE, text)
        kept = [e for e in _lines(folder) if e['epoch'] <= runner.epoch]
        text = ''.join(json.dumps(line) + '\n' for line in kept)
        write_in_one_step(folder / _HISTORY_FILE, text)

    def _start(self, epoch: int) -> dict[str, Any]:
        return dict(
            epoch=epoch,
            date=datetime.now().astimezone().isoformat(timespec='seconds'),
            execution=self.execution,
            environment=_environment(),
        )

    @master_only
    def before_train_epoch(self, runner: Runner) -> None:
        """Look at the clock."""
        self._begin = time.monotonic()

    @master_only
    def after_train_epoch(self, runner: Runner) -> None:
        """Write the epoch's seconds."""
        seconds = round(time.monotonic() - self._begin, 3)
        _write_line(
            Path(runner.work_dir), epoch=runner.epoch + 1, seconds=seconds
        )

    @master_only
    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Write the metric."""
        percent = round(metrics[self.metric] * self.factor, 3)
        _write_line(Path(runner.work_dir), epoch=runner.epoch, percent=percent)


def _environment() -> dict[str, str]:
    found = {name: str(value) for name, value in collect_env().items()}
    found.pop('PyTorch compiling details', None)  # 30 lines
    return {**found, **versions(), 'hardware': hardware(), 'commit': commit()}


def _describe(runner: Runner) -> dict[str, Any]:
    loader = runner.train_dataloader
    return dict(
        train=describe_data(loader.dataset),
        val=describe_data(runner.val_dataloader.dataset),
        epochs=runner.max_epochs,
        batch=loader.batch_size,
        parameters=sum(p.numel() for p in runner.model.parameters()),
    )


def _write_line(folder: Path, **line) -> None:
    with (folder / _HISTORY_FILE).open('a') as stream:
        stream.write(json.dumps(line) + '\n')


def _lines(folder: Path) -> list[dict]:
    """Return the history; a line may be cut with its process."""
    file = folder / _HISTORY_FILE
    lines = []
    for text in file.read_text().splitlines() if file.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def read_job(folder: Path) -> dict | None:
    """Return what a folder's ``job.json`` says, None if there is none.

    Raises:
        UserInputError: If it is damaged.
    """
    file = folder / _JOB_FILE
    if not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text()))
    except (TypeError, ValueError) as error:
        raise UserInputError(
            f'{file} is damaged: delete the folder {folder} to train again.'
        ) from error


def read_history(folder: Path) -> list[list[float | None]]:
    """Return ``[epoch, percent]`` of every validation so far.

    Percent is None in the epoch in which the loss became infinite or NaN.
    """
    found = {
        e['epoch']: e['percent'] for e in _lines(folder) if 'percent' in e
    }
    return [[epoch, value] for epoch, value in sorted(found.items())]


def note_divergence(folder: Path) -> None:
    """Write down that the epoch behind the last validation has no result."""
    history = read_history(folder) or [[0, None]]
    _write_line(folder, epoch=history[-1][0] + 1, percent=None)


def is_finished(folder: Path) -> bool:
    """Return whether the training in a folder came to its end, or diverged."""
    job, history = read_job(folder), read_history(folder)
    return bool(job and history) and (
        history[-1][1] is None or history[-1][0] == job['epochs']
    )


def read_record(folder: Path) -> Record:
    """Return the record of a training that is finished."""
    history = read_history(folder)
    lines = _lines(folder)
    seconds = {e['epoch']: e['seconds'] for e in lines if 'seconds' in e}
    return Record(
        **read_job(folder),
        history=[entry for entry in history if entry[1] is not None],
        final=history[-1][1],
        hours=round(sum(seconds.values()) / 3600, 5),
    )
