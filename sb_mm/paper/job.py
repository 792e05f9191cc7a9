"""A job: one training of one cell, from its config to its record."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils.dl_utils import collect_env
from torch.utils.data import Dataset

from sb_mm.engine.environment import commit, hardware, versions
from sb_mm.engine.runner import train
from sb_mm.errors import DivergedError, UserInputError
from sb_mm.registry import HOOKS

from .cells import Cell, find_cell
from .records import Record, append_record, find_record, identity, read_job

# What is the same whenever a job is started.
_FIXED = attrgetter(
    *('cell', 'seed', 'options', 'train', 'val'),
    *('epochs', 'batch', 'parameters'),
)


# By identity: two jobs are never equal.
@dataclass(frozen=True, eq=False)
class Job:
    """A training; without options, it is the paper's."""

    cell: Cell
    seed: int = 0  # of weights and images
    # What differs from the cell's config, by dotted keys.
    options: Mapping[str, Any] = field(default_factory=dict)
    out: Path = Path('work_dirs/paper')  # folder of all jobs
    data_root: str | None = None  # that of the config if None
    channels_last: bool = False  # memory format of CIFAR-10's batches
    compile: str | None = None  # mode of torch.compile

    @property
    def name(self) -> str:
        """Such as ``t6-x0.35-sb seed 0``."""
        return f'{self.cell.id} seed {self.seed}'

    @property
    def identity(self) -> tuple:
        """That of its record."""
        return identity(self.cell, self.seed, self.options)

    @property
    def folder(self) -> Path:
        """That of its log and checkpoints, by options and data."""
        kind, name = [dict(self.options), self.data_root], f'seed{self.seed}'
        if any(kind):
            text = json.dumps(kind, sort_keys=True)
            name += f'-{hashlib.sha256(text.encode()).hexdigest()[:8]}'
        return self.out / self.cell.id / name

    def config(self) -> Config:
        """Return what is trained; raise if an option has no effect."""
        cfg = self.cell.resolve(
            {'randomness.seed': self.seed, **self.options},
            data_root=self.data_root,
            work_dir=str(self.folder),
        )
        self._check(cfg)
        if self.channels_last:
            cfg.data_preprocessor.channels_last = True
        options = dict(self.options)
        job = dict(cell=self.cell.id, seed=self.seed, options=options)
        how = dict(channels_last=self.channels_last, compile=self.compile)
        hooks = [dict(type='sb_mm.JobHook', job=job, execution=how)]
        if self.compile:
            hooks.append(dict(type='sb_mm.CompileHook', mode=self.compile))
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), *hooks]
        return cfg

    def _check(self, cfg: Config) -> None:
        if self.options.keys() & {'launcher', 'work_dir'}:
            raise UserInputError(
                '--cfg-options launcher and work_dir have no effect here: '
                'leave them out; --out is the folder of the jobs.'
            )
        if cfg.train_cfg.get('val_begin', 1) > cfg.train_cfg.max_epochs:
            raise UserInputError(
                'train_cfg.val_begin comes after the last epoch, whose metric '
                'is the result: set a smaller one.'
            )
        if self.channels_last and self.cell.dataset != 'cifar10':
            raise UserInputError(
                f'--channels-last is for CIFAR-10, not for {self.cell.id}: '
                'leave it out.'
            )


@HOOKS.register_module()
class JobHook(Hook):
    """Write ``job.json``: a job before it is trained, and how it goes."""

    def __init__(self, job: dict[str, Any], execution: dict[str, Any]) -> None:
        # As they are read back: JSON knows no tuples.
        self.job = json.loads(json.dumps(job))
        self.execution = dict(execution)
        self.spec = find_cell(job['cell']).spec

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Write what is launched; raise if the folder is another job's."""
        self.folder, self.clock = Path(runner.work_dir), time.monotonic()
        self.record = Record(
            **self.job,
            train=_size(runner.train_dataloader.dataset),
            val=_size(runner.val_dataloader.dataset),
            epochs=runner.max_epochs,
            batch=runner.train_dataloader.batch_size,
            parameters=sum(p.numel() for p in runner.model.parameters()),
        )
        if before := read_job(self.folder):
            self._go_on(before, runner.epoch)
        start = dict(
            epoch=runner.epoch,
            date=datetime.now().astimezone().isoformat(timespec='seconds'),
            execution=self.execution,
            environment=_environment(),
        )
        self.record.starts.append(start)
        self._write()

    def _go_on(self, before: Record, epoch: int) -> None:
        record, old, new = self.record, _FIXED(before), _FIXED(self.record)
        if old != new:
            raise UserInputError(
                f'{self.folder} holds another training ({old}, now {new}): '
                'delete that folder, or give another --out.'
            )
        record.history = [e for e in before.history if e[0] <= epoch]
        record.starts, record.hours = before.starts, before.hours

    @master_only
    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Write the metric, again where a resumed job validates again."""
        epoch, record = runner.epoch, self.record
        percent = round(metrics[self.spec.metric] * self.spec.factor, 3)
        before = [e for e in record.history if e[0] < epoch]
        record.history = [*before, [epoch, percent]]
        record.final = percent if epoch == record.epochs else None
        self._write()

    def _write(self) -> None:
        before, self.clock = self.clock, time.monotonic()
        hours = self.record.hours + (self.clock - before) / 3600
        self.record.hours = round(hours, 5)
        self.record.write(self.folder)


def _environment() -> dict[str, str]:
    found = {name: str(value) for name, value in collect_env().items()}
    found.pop('PyTorch compiling details', None)  # 30 lines
    return {**found, **versions(), 'hardware': hardware(), 'commit': commit()}


def _size(dataset: Dataset) -> dict[str, int]:
    classes = dataset.metainfo.get('classes') or ()
    return dict(images=len(dataset), classes=len(classes))


def train_job(job: Job, results: Path) -> Record:
    """Train a job, or what is left of it, and record it in a folder."""
    if record := find_record(results, job.identity):
        return record
    record = read_job(job.folder)
    if record is None or record.final is None:
        try:
            train(job.config(), resume='auto')
        except DivergedError as error:
            print(error)
        record = read_job(job.folder)
    return append_record(record, results)
