"""How the cells are trained: the paper's recipe, or what is changed of it."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from sb_mm.arguments import check_number
from sb_mm.engine.config import (
    dataset_configs,
    resolve_data_roots,
    set_data_root,
)
from sb_mm.engine.on_device import use_device_data
from sb_mm.engine.options import apply_options, check_own_arguments
from sb_mm.errors import UserInputError
from sb_mm.paper.cells import Cell

# A run that is cut loses at most that part of its epochs.
_LOST = 20
_EPOCHS = 'train_cfg.max_epochs'
# Keys of the config that a reproduction sets.
_OWN_SETTINGS = (
    'compile',
    'custom_hooks',
    'default_hooks.',
    'launcher',
    'randomness',
    'work_dir',
)
# What use_device_data() sets.
_OF_THE_HOST = re.compile(
    r'(train|val|test)_dataloader\.(collate_fn|num_workers|persistent_workers|'
    r'pin_memory|prefetch_factor)\b|val_cfg\.type$'
)
# Divides the images, so that all batches are of one size to a compiler.
_VAL_BATCH = 500
# Iterations between two lines of the log, from which progress is shown.
_LOG_INTERVAL = 20


@dataclass(frozen=True)
class Recipe:
    """What a reproduction sets besides the cells' own configs.

    Attributes:
        epochs: Instead of the paper's; None for these.
        options: Further settings of the config, by dotted keys.
        data_root: Folder of the data; None for the config's.
        on_device: Keep CIFAR-10 on the device, with batches cut out there;
            other datasets are always read by the host's loader.
        channels_last: Memory format of the batches on the device.
        compile: Mode of ``torch.compile``, such as ``'default'``, or
            ``'reduce-overhead'`` with CUDA graphs; None for none.
        amp: bfloat16 where autocast permits it; a deviation.
    """

    epochs: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    data_root: str | None = None
    on_device: bool = True
    channels_last: bool = False
    compile: str | None = None
    amp: bool = False

    def __post_init__(self) -> None:
        if self.epochs is not None:
            check_number('--epochs', self.epochs, 1, integer=True)
        if self.epochs is not None and _EPOCHS in self.options:
            raise UserInputError(
                f'--epochs and --cfg-options {_EPOCHS} both set the epochs: '
                'leave one out.'
            )
        own = [k for k in self.options if k.startswith(_OWN_SETTINGS)]
        if own:
            raise UserInputError(
                f'--cfg-options {own[0]} is set by this tool itself: leave it '
                'out.'
            )

    @property
    def name(self) -> str:
        """Folder for the runs: of equal name are equal trainings."""
        changes = dict(self.options)
        if self.epochs is not None:
            changes[_EPOCHS] = self.epochs
        if self.amp:
            changes['amp'] = True
        name = f'reduced-{_digest(changes)}' if changes else 'full'
        # Another folder may hold other images.
        return f'{name}-{_digest(self.data_root)}' if self.data_root else name

    @property
    def is_variant(self) -> bool:
        """Whether it changes the network."""
        return any(key.startswith('model.') for key in self.options)

    def config(self, cell: Cell, seed: int, work_dir: Path) -> Config:
        """Return what ``tools/train.py`` runs.

        Raises:
            UserInputError: If an option names nothing in the cell's config.
        """
        cfg = cell.resolve()
        apply_options(cfg, dict(self.options))
        if self.epochs is not None:
            cfg.train_cfg.max_epochs = self.epochs
        check_own_arguments(cfg)
        self._set_data(cfg, cell)
        if self.amp:
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
            cfg.optim_wrapper.dtype = 'bfloat16'
            # Small gradients are no trouble to bfloat16's exponents.
            cfg.optim_wrapper.loss_scale = dict(enabled=False)
        optimizer = cfg.optim_wrapper.optimizer
        if optimizer.type == 'SGD' and not optimizer.get('foreach'):
            optimizer.setdefault('fused', True)
        cfg.randomness = dict(seed=seed)
        cfg.work_dir = str(work_dir)
        cfg.launcher = 'none'
        _set_hooks(cfg)
        if self.compile:
            hook = ConfigDict(type='sb_mm.CompileHook', mode=self.compile)
            cfg.custom_hooks.append(hook)
        return cfg

    def _set_data(self, cfg: Config, cell: Cell) -> None:
        if self.data_root is not None:
            if not Path(self.data_root).is_dir():
                raise UserInputError(
                    f'--data-root {self.data_root} is not a folder: give the '
                    'one that holds the data.'
                )
            set_data_root(cfg, self.data_root)
        resolve_data_roots(cfg)
        if cell.dataset != 'cifar10':
            if self.channels_last:
                raise UserInputError(
                    '--channels-last is for batches of CIFAR-10 on the '
                    f'device, and {cell.id} has other data: leave it out.'
                )
            return
        for _, dataset in dataset_configs(cfg):
            if (Path(dataset.data_root) / 'train-0.npz').is_file():
                dataset.type = 'sb_mm.PackedCIFAR10'
        if self.on_device:
            self._refuse_lost_options()
            use_device_data(cfg, self.channels_last)
            if 'val_dataloader.batch_size' not in self.options:
                cfg.val_dataloader.batch_size = _VAL_BATCH

    def _refuse_lost_options(self) -> None:
        """Raise if an option is of a loader that there is none of."""
        for key in _dotted(self.options):
            if _OF_THE_HOST.match(key):
                raise UserInputError(
                    f'--cfg-options {key} has no effect on images that are '
                    'on the device: leave it out, or give '
                    'tools/reproduce.py --host-loader.'
                )


def _dotted(options: Mapping[str, Any], path: str = '') -> Iterator[str]:
    """Yield the keys of nested dicts with dots between them."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f'{path}{key}.')
        else:
            yield f'{path}{key}'


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _set_hooks(cfg: Config) -> None:
    """Set what is written while it trains."""
    epochs = cfg.train_cfg.max_epochs
    checkpoint = cfg.default_hooks.checkpoint
    # The best of many validations on the test data is no result.
    checkpoint.pop('save_best', None)
    checkpoint.pop('rule', None)
    checkpoint.interval = max(1, epochs // _LOST)
    checkpoint.max_keep_ckpts = 2
    cfg.default_hooks.logger.interval = _LOG_INTERVAL
    # The losses are fetched with a line of the log, which takes a GPU's time
    # of all iterations since the last one: all of these are averaged.
    cfg.log_processor.window_size = _LOG_INTERVAL
    cfg.default_hooks.runtime_info = ConfigDict(
        type='sb_mm.DeferredRuntimeInfoHook'
    )
    # Every epoch leaves a line, however short it is.
    cfg.default_hooks.logger.ignore_last = False
    cfg.visualizer.vis_backends = [ConfigDict(type='LocalVisBackend')]
    cfg.custom_hooks = [
        *(cfg.get('custom_hooks') or []),
        # With the images on the device, a resumed run is the uncut one.
        ConfigDict(type='sb_mm.EpochSeedHook'),
    ]


def check_seeds(seeds: list[int]) -> None:
    """Raise unless the seeds are usable and distinct."""
    for seed in seeds:
        check_number('--seeds', seed, 0, 2**32 - 1, integer=True)
    if len(set(seeds)) < len(seeds):
        raise UserInputError(
            f'--seeds names a seed twice ({seeds}): a run is done once.'
        )
