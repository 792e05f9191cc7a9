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

from .records import Record


@HOOKS.register_module()
class JobHook(Hook):
    """Write ``job.json``: what is trained, before it is, and how it goes.

    The job, its data, size and epochs; for each start the environment; then
    each epoch's seconds and each validation's metric.

    Args:
        job: What :class:`~sb_mm.paper.job.Job` says of itself.
        execution: How it is computed.
        metric: Name of the result.
        factor: From that to percent.
    """

    def __init__(
        self,
        job: dict[str, Any],
        execution: dict[str, Any],
        metric: str,
        factor: float,
    ) -> None:
        # As they are read back: JSON knows no tuples.
        self.job = json.loads(json.dumps(job))
        self.execution = dict(execution)
        self.metric = metric
        self.factor = factor

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Write what is launched; forget what the training repeats.

        Raises:
            UserInputError: If the folder is that of another job, or the data
                are not what they were.
        """
        self.folder = Path(runner.work_dir)
        before = read_job(self.folder)
        self.job.update(_describe(runner))
        for key, value in self.job.items():
            if before.get(key, value) != value:
                raise UserInputError(
                    f'{self.folder} holds another training ({key}: '
                    f'{before[key]}, now {value}): delete that folder, or '
                    'give another --out.'
                )
        epoch = runner.epoch
        starts, history = before.get('starts', []), before.get('history', [])
        start = dict(
            epoch=epoch,
            date=datetime.now().astimezone().isoformat(timespec='seconds'),
            execution=self.execution,
            environment=_environment(),
        )
        self.job.update(
            starts=[*(s for s in starts if s['epoch'] < epoch), start],
            history=[e for e in history if e[0] <= epoch],
            seconds=before.get('seconds', [])[:epoch],
        )
        write_job(self.folder, self.job)

    @master_only
    def before_train_epoch(self, runner: Runner) -> None:
        """Look at the clock."""
        self._begin = time.monotonic()

    @master_only
    def after_train_epoch(self, runner: Runner) -> None:
        """Write the epoch's seconds."""
        self.job['seconds'].append(round(time.monotonic() - self._begin, 3))
        write_job(self.folder, self.job)

    @master_only
    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Write the metric, again where a resumed job validates again."""
        percent = round(metrics[self.metric] * self.factor, 3)
        before = [e for e in self.job['history'] if e[0] < runner.epoch]
        self.job['history'] = [*before, [runner.epoch, percent]]
        write_job(self.folder, self.job)


def _describe(runner: Runner) -> dict[str, Any]:
    train, val = (
        dict(images=len(d), classes=len(d.metainfo.get('classes') or ()))
        for d in (
            runner.train_dataloader.dataset,
            runner.val_dataloader.dataset,
        )
    )
    return dict(
        train=train,
        val=val,
        epochs=runner.max_epochs,
        batch=runner.train_dataloader.batch_size,
        parameters=sum(p.numel() for p in runner.model.parameters()),
    )


def _environment() -> dict[str, str]:
    found = {name: str(value) for name, value in collect_env().items()}
    found.pop('PyTorch compiling details', None)  # 30 lines
    return {**found, **versions(), 'hardware': hardware(), 'commit': commit()}


def write_job(folder: Path, job: dict[str, Any]) -> None:
    """Write a folder's ``job.json``."""
    text = json.dumps(job, indent=1) + '\n'
    write_in_one_step(folder / 'job.json', text)


def read_job(folder: Path) -> dict[str, Any]:
    """Return what a folder's ``job.json`` says, nothing if there is none.

    Raises:
        UserInputError: If it is damaged.
    """
    file = folder / 'job.json'
    try:
        return dict(json.loads(file.read_text())) if file.is_file() else {}
    except (TypeError, ValueError) as error:
        raise UserInputError(
            f'{file} is damaged: delete the folder {folder} to train again.'
        ) from error


def read_record(folder: Path) -> Record:
    """Return the record of a training that is finished."""
    job = read_job(folder)
    hours = round(sum(job.pop('seconds')) / 3600, 5)
    final = None if job.pop('diverged', False) else job['history'][-1][1]
    return Record(**job, final=final, hours=hours)
