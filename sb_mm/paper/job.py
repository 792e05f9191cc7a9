"""A job: one training of one cell, from its config to its record."""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mmengine.config import Config, ConfigDict
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils.dl_utils import collect_env

from sb_mm.engine.config import dataset_configs, load_config
from sb_mm.engine.divergence_hook import DivergedError
from sb_mm.engine.on_device import use_device_data
from sb_mm.engine.run_info import commit, hardware, versions
from sb_mm.engine.runner import train
from sb_mm.errors import UserInputError
from sb_mm.files import write_in_one_step
from sb_mm.registry import HOOKS

from .cells import REPOSITORY, Cell
from .datasets import describe_data
from .records import Record, append_record, identity, read_results

JOB_FILE, HISTORY_FILE = 'job.json', 'history.jsonl'
# A training that is cut loses at most that part of its epochs.
_LOST = 20
# Iterations between two lines of the log.
_LOG_INTERVAL = 20
# Divides the images, so that all batches are of one size to a compiler.
_VAL_BATCH = 500
# Settings that a job sets, and those that images on the device leave unread.
_OWN = re.compile(
    r'(compile|custom_hooks|default_hooks|launcher|randomness|work_dir)\b'
)
_OF_HOST = re.compile(
    r'(train|val|test)_dataloader\.(collate_fn|num_workers|pin_memory|'
    r'persistent_workers|prefetch_factor)\b|val_cfg\.type$'
)


@dataclass(frozen=True)
class Execution:
    """How a job is computed, as far as no number depends on it.

    Attributes:
        data_root: Folder of the data; None for the config's.
        on_device: Keep CIFAR-10 on the device, where batches are cut out.
        channels_last: Memory format of the batches on the device.
        compile: Mode of ``torch.compile``; None for none.
    """

    data_root: str | None = None
    on_device: bool = True
    channels_last: bool = False
    compile: str | None = None


@dataclass(frozen=True)
class Job:
    """A training.

    Attributes:
        cell: What is trained.
        seed: Of weights and images.
        options: What differs from the cell's config, by dotted keys; empty
            for the paper's recipe.
        execution: How it is computed.
        root: Folder of all jobs.
    """

    cell: Cell
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    execution: Execution = Execution()
    root: Path = Path('work_dirs/paper')

    @property
    def name(self) -> str:
        """Such as ``t6-x0.35-sb seed 0``."""
        return f'{self.cell.id} seed {self.seed}'

    @property
    def folder(self) -> Path:
        """Folder of its log and checkpoints: other options have another."""
        # Another folder of data may hold other images.
        kind = {**self.options, 'data_root': self.execution.data_root}
        text = json.dumps(kind, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return self.root / self.cell.id / f'seed{self.seed}-{digest}'

    def config(self) -> Config:
        """Return what is trained.

        Raises:
            UserInputError: If an option names nothing in the cell's config, or
                has no effect.
        """
        self._check_options()
        cfg = load_config(
            str(REPOSITORY / self.cell.config),
            {**self.cell.overrides, **self.options},
            data_root=self.execution.data_root,
            work_dir=str(self.folder),
        )
        cfg.randomness = dict(seed=self.seed)
        if self.cell.dataset == 'cifar10':
            self._place_images(cfg)
        _set_optimizer(cfg)
        _set_hooks(cfg)
        cfg.custom_hooks.append(
            ConfigDict(
                type='sb_mm.JobHook',
                job=self.description,
                execution=asdict(self.execution),
                metric=self.cell.spec.metric,
                factor=self.cell.spec.factor,
            )
        )
        if self.execution.compile:
            mode = self.execution.compile
            hook = ConfigDict(type='sb_mm.CompileHook', mode=mode)
            cfg.custom_hooks.append(hook)
        return cfg

    @property
    def description(self) -> dict[str, Any]:
        """What it is, as its record says it."""
        return dict(
            cell=self.cell.id, seed=self.seed, options=dict(self.options)
        )

    @property
    def identity(self) -> tuple:
        """That of its record."""
        return identity(self.cell, self.seed, self.options)

    def find_in(self, folder: Path) -> Record | None:
        """Return its record in a folder, if there is one."""
        records = read_results(folder).records
        same = [r for r in records if r.identity == self.identity]
        return same[0] if same else None

    def _check_options(self) -> None:
        on_device = self.cell.dataset == 'cifar10' and self.execution.on_device
        for key in self.options:
            if _OWN.match(key):
                raise UserInputError(
                    f'--cfg-options {key} is set by this tool itself: leave '
                    'it out.'
                )
            if on_device and _OF_HOST.match(key):
                raise UserInputError(
                    f'--cfg-options {key} has no effect on images that are '
                    'on the device: leave it out, or add --host-loader.'
                )
        if self.execution.channels_last and not on_device:
            raise UserInputError(
                '--channels-last is for batches of CIFAR-10 on the device, '
                f'and those of {self.cell.id} are not: leave it out.'
            )

    def _place_images(self, cfg: Config) -> None:
        _read_folders(cfg)
        if self.execution.on_device:
            use_device_data(cfg, self.execution.channels_last)
            if 'val_dataloader.batch_size' not in self.options:
                cfg.val_dataloader.batch_size = _VAL_BATCH


def _read_folders(cfg: Config) -> None:
    """Read CIFAR-10 from ``{train,test}/<class>/*.png`` where that is there.

    Files have blue first, and mmpretrain's ``CIFAR10`` red.
    """
    for _, dataset in dataset_configs(cfg):
        folder = Path(dataset.data_root, dataset.get('split') or '')
        if dataset.type != 'CIFAR10' or not folder.is_dir():
            continue
        dataset.type = 'CustomDataset'
        dataset.data_prefix = dataset.pop('split')
        dataset.pipeline.insert(0, ConfigDict(type='LoadImageFromFile'))
        cfg.data_preprocessor.to_rgb = True


def _set_optimizer(cfg: Config) -> None:
    optimizer = cfg.optim_wrapper.optimizer
    if optimizer.type == 'SGD' and not optimizer.get('foreach'):
        # One kernel for all weights: equal up to rounding.
        optimizer.setdefault('fused', True)


def _set_hooks(cfg: Config) -> None:
    """Set what is written while it trains."""
    checkpoint = cfg.default_hooks.checkpoint
    # The best of many validations on the test data is no result.
    checkpoint.pop('save_best', None)
    checkpoint.pop('rule', None)
    checkpoint.interval = max(1, cfg.train_cfg.max_epochs // _LOST)
    checkpoint.max_keep_ckpts = 2
    cfg.default_hooks.logger.interval = _LOG_INTERVAL
    # The losses are fetched with a line of the log, which takes a GPU's time
    # of all iterations since the last one: all of these are averaged.
    cfg.log_processor.window_size = _LOG_INTERVAL
    cfg.default_hooks.runtime_info = ConfigDict(
        type='sb_mm.DeferredRuntimeInfoHook'
    )
    cfg.visualizer.vis_backends = [ConfigDict(type='LocalVisBackend')]
    # It costs time, and its lines are most of the log.
    kept = [
        hook
        for hook in cfg.get('custom_hooks') or []
        if hook['type'] != 'sb_mm.AttentionStatsHook'
    ]
    # With the images on the device, a resumed job ends as an uncut one.
    names = ('DivergenceHook', 'EpochSeedHook', 'ValidateResumedHook')
    known = {hook['type'] for hook in kept}
    cfg.custom_hooks = kept + [
        ConfigDict(type=f'sb_mm.{name}')
        for name in names
        if f'sb_mm.{name}' not in known
    ]


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
        write_in_one_step(folder / JOB_FILE, text)
        kept = [e for e in _lines(folder) if e['epoch'] <= runner.epoch]
        text = ''.join(json.dumps(line) + '\n' for line in kept)
        write_in_one_step(folder / HISTORY_FILE, text)

    def _start(self, epoch: int) -> dict[str, Any]:
        environment = {**collect_env(), **versions()}
        environment.pop('PyTorch compiling details', None)  # 30 lines
        return dict(
            epoch=epoch,
            date=datetime.now().astimezone().isoformat(timespec='seconds'),
            execution=self.execution,
            environment=dict(
                environment, hardware=hardware(), commit=commit()
            ),
        )

    def before_train_epoch(self, runner: Runner) -> None:
        """Look at the clock."""
        self._begin = time.monotonic()

    def after_train_epoch(self, runner: Runner) -> None:
        """Write the epoch's seconds."""
        seconds = round(time.monotonic() - self._begin, 3)
        _write_line(runner, epoch=runner.epoch + 1, seconds=seconds)

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Write the metric."""
        percent = round(metrics[self.metric] * self.factor, 3)
        _write_line(runner, epoch=runner.epoch, percent=percent)


def _describe(runner: Runner) -> dict[str, Any]:
    loader = runner.train_dataloader
    return dict(
        train=describe_data(loader.dataset),
        val=describe_data(runner.val_dataloader.dataset),
        epochs=runner.max_epochs,
        batch=loader.batch_size,
        parameters=sum(p.numel() for p in runner.model.parameters()),
    )


@master_only
def _write_line(runner: Runner, **line) -> None:
    with Path(runner.work_dir, HISTORY_FILE).open('a') as stream:
        stream.write(json.dumps(line) + '\n')


def _lines(folder: Path) -> list[dict]:
    """Return the history; a line may be cut with its process."""
    file = folder / HISTORY_FILE
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
    file = folder / JOB_FILE
    if not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text()))
    except (TypeError, ValueError) as error:
        raise UserInputError(
            f'{file} is damaged: delete the folder {folder} to train again.'
        ) from error


def read_history(folder: Path) -> list[list[float]]:
    """Return ``[epoch, percent]`` of every validation so far."""
    found = {
        e['epoch']: e['percent'] for e in _lines(folder) if 'percent' in e
    }
    return [[epoch, value] for epoch, value in sorted(found.items())]


def finished_record(folder: Path) -> Record | None:
    """Return the record of the job in a folder, None if it is unfinished."""
    job, history = read_job(folder), read_history(folder)
    diverged = any(e.get('diverged') for e in _lines(folder))
    last = history[-1] if history else [0, None]
    if job is None or not (diverged or last[0] == job['epochs']):
        return None
    seconds = {
        e['epoch']: e['seconds'] for e in _lines(folder) if 'seconds' in e
    }
    return Record(
        **job,
        history=history,
        final=None if diverged else last[1],
        hours=round(sum(seconds.values()) / 3600, 3),
    )


def train_job(job: Job, results: Path) -> Record:
    """Train a job, or what is left of it, and record it.

    If another process trains it, wait for its end and see what is left.

    Args:
        job: To be trained.
        results: Folder of the records.

    Raises:
        UserInputError: If its input cannot be used.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.folder / '.lock')
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f'waits for another process that trains in {job.folder}')
        lock.acquire()
    with lock:
        lock.release()  # of acquire() above; the block has its own
        record = job.find_in(results) or finished_record(job.folder)
        if record is None:
            _train(job)
            record = finished_record(job.folder)
        return append_record(record, results)


def _train(job: Job) -> None:
    try:
        train(job.config(), resume='auto')
    except DivergedError:
        line = dict(epoch=0, diverged=True)
        with (job.folder / HISTORY_FILE).open('a') as stream:
            stream.write(json.dumps(line) + '\n')
