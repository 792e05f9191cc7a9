"""A job: one training of one cell, from its config to its record."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from sb_mm.engine.config import dataset_configs, load_config
from sb_mm.engine.on_device import use_device_data
from sb_mm.engine.runner import train
from sb_mm.errors import DivergedError, UserInputError

from .cells import REPOSITORY, Cell
from .job_hook import read_job, read_record, write_job
from .records import Record, append_record, identity, read_records

# A training that is cut loses at most that part of its epochs.
_LOST = 20
# Iterations between two lines of the log.
_LOG_INTERVAL = 20
# Divides the images, so that all batches are of one size to a compiler.
_VAL_BATCH = 500
# Settings that a job sets, and those that images on the device leave unread.
_OWN = r'(compile|custom_hooks|default_hooks|launcher|randomness|work_dir)\b'
_OF_HOST = re.compile(
    r'(train|val|test)_dataloader\.(collate_fn|num_workers|pin_memory|'
    r'persistent_workers|prefetch_factor)\b'
)


# By identity: two jobs are never equal.
@dataclass(frozen=True, eq=False)
class Job:
    """A training.

    Attributes:
        cell: What is trained.
        seed: Of weights and images.
        options: What differs from the cell's config, by dotted keys; empty
            for the paper's recipe.
        out: Folder of all jobs.
        data_root: Folder of the data; None for the config's.
        host_loader: Read CIFAR-10 with mmpretrain's loader, instead of keeping
            it on the device, where batches are cut out.
        channels_last: Memory format of the batches on the device.
        compile: Mode of ``torch.compile``; None for none.
    """

    cell: Cell
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    out: Path = Path('work_dirs/paper')
    data_root: str | None = None
    host_loader: bool = False
    channels_last: bool = False
    compile: str | None = None

    @property
    def name(self) -> str:
        """Such as ``t6-x0.35-sb seed 0``."""
        return f'{self.cell.id} seed {self.seed}'

    @property
    def identity(self) -> tuple:
        """That of its record."""
        return identity(self.cell, self.seed, self.options)

    @property
    def on_device(self) -> bool:
        """Whether the images are kept there."""
        return self.cell.dataset == 'cifar10' and not self.host_loader

    @property
    def folder(self) -> Path:
        """Folder of its log and checkpoints: other options have another."""
        # As other data may.
        kind = [dict(self.options), self.data_root]
        text = json.dumps(kind, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = f'seed{self.seed}' + (f'-{digest}' if any(kind) else '')
        return self.out / self.cell.id / name

    @property
    def log(self) -> Path:
        """What the training printed."""
        return self.folder / 'train.log'

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
            data_root=self.data_root,
            work_dir=str(self.folder),
        )
        cfg.randomness = dict(seed=self.seed)
        if self.cell.dataset == 'cifar10':
            _read_folders(cfg)
        if self.on_device:
            use_device_data(cfg, self.channels_last)
            if 'val_dataloader.batch_size' not in self.options:
                cfg.val_dataloader.batch_size = _VAL_BATCH
        if cfg.optim_wrapper.optimizer.type == 'SGD':
            # One kernel for all weights: equal up to rounding.
            cfg.optim_wrapper.optimizer.setdefault('fused', True)
        _set_hooks(cfg)
        cfg.custom_hooks = self._hooks()
        return cfg

    def _check_options(self) -> None:
        for key in self.options:
            of_host = self.on_device and _OF_HOST.match(key)
            if of_host or re.match(_OWN, key):
                keep = ', or add --host-loader' if of_host else ''
                raise UserInputError(
                    f'--cfg-options {key} has no effect, as this tool sets it '
                    f'itself: leave it out{keep}.'
                )
        if self.channels_last and not self.on_device:
            raise UserInputError(
                '--channels-last is for batches of CIFAR-10 on the device, '
                f'and those of {self.cell.id} are not: leave it out.'
            )

    def _hooks(self) -> list[dict]:
        options, spec = dict(self.options), self.cell.spec
        how = ('on_device', 'channels_last', 'compile')
        hooks = [
            dict(
                type='sb_mm.JobHook',
                job=dict(cell=self.cell.id, seed=self.seed, options=options),
                execution={name: getattr(self, name) for name in how},
                metric=spec.metric,
                factor=spec.factor,
            ),
            # With the images on the device, a resumed job is the uncut one.
            dict(type='sb_mm.EpochSeedHook'),
        ]
        if self.compile:
            hooks.append(dict(type='sb_mm.CompileHook', mode=self.compile))
        return hooks


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
        if isinstance(dataset.get('indices'), int):
            dataset.indices = _spread(dataset.indices, folder)


def _spread(count: int, folder: Path) -> range:
    """Return indices of images in folders, which are sorted by class."""
    images = sum(1 for _ in folder.glob('*/*'))
    if count < 1 or images % count:
        raise UserInputError(
            f'dataset.indices={count} must divide the {images} images in '
            f'{folder}, of which every n-th is taken: choose another number.'
        )
    return range(0, images, images // count)


def _set_hooks(cfg: Config) -> None:
    """Set what is written while it trains."""
    checkpoint = cfg.default_hooks.checkpoint
    # The best of many validations on the test data is no result.
    checkpoint.pop('save_best', None)
    checkpoint.pop('rule', None)
    checkpoint.interval = max(1, cfg.train_cfg.max_epochs // _LOST)
    checkpoint.max_keep_ckpts = 2
    cfg.default_hooks.logger.interval = _LOG_INTERVAL
    cfg.log_processor.window_size = _LOG_INTERVAL
    cfg.visualizer.vis_backends = [ConfigDict(type='LocalVisBackend')]


def train_job(job: Job, results: Path) -> Record:
    """Train a job, or what is left of it, and record it in a folder."""
    for record in read_records(results):
        if record.identity == job.identity:
            return record
    launched = read_job(job.folder)
    history = launched.get('history') or [[0, None]]
    ended = history[-1][0] == launched.get('epochs')
    if not (ended or 'diverged' in launched):
        try:
            train(job.config(), resume='auto')
        except DivergedError as error:
            print(error)
            write_job(job.folder, {**read_job(job.folder), 'diverged': True})
    return append_record(read_record(job.folder), results)
