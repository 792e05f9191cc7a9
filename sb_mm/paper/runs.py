"""A finished run, read from the folders that its training wrote."""

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from sb_mm.engine.config import dataset_configs, read_config
from sb_mm.engine.hooks.divergence import DIVERGENCE_FILE
from sb_mm.engine.hooks.run_info import (
    RUN_INFO_FILE,
    describe_data,
    start_folders,
)
from sb_mm.engine.on_device import has_device_data, use_device_data
from sb_mm.engine.preflight import check_data
from sb_mm.errors import UserInputError

from .cells import Cell

# Key of the metric in MMEngine's scalars, and its factor to percent.
_METRICS = {
    'imagenet': ('accuracy/top1', 1),
    'cifar10': ('accuracy/top1', 1),
    'voc0712': ('pascal_voc/mAP', 100),
}
# Images for training and for validation, and the classes that read them.
_DATA = {
    'imagenet': (1_281_167, 50_000, {'ImageNet'}),
    'cifar10': (50_000, 10_000, {'CIFAR10', 'PackedCIFAR10'}),
    'voc0712': (5_011 + 11_540, 4_952, {'VOCDevkitDataset'}),
}
# Settings that do not change the result: where files lie, who reads them and
# what is logged. What data there were and the batch of all processes are
# compared as the run found them; hooks by their types.
_IRRELEVANT = (
    'auto_scale_lr.enable',
    'compile',
    'custom_hooks',
    'custom_imports',
    'data_root',
    'dataset_type',
    'default_hooks',
    'env_cfg',
    'launcher',
    'log_level',
    'log_processor',
    'randomness',
    'resume',
    'test_',
    'train_dataloader.batch_size',
    'train_pipeline',
    'val_dataloader.batch_size',
    'vis_backends',
    'visualizer',
    'work_dir',
)
_IRRELEVANT_ENDS = (
    'channels_last',
    'data_root',
    'dataset.type',
    'download',
    # One kernel for all weights instead of several: equal up to rounding.
    'optimizer.fused',
    'num_workers',
    'persistent_workers',
    'pin_memory',
    'prefetch_factor',
)
# Hooks that log, save, stop or seed, and leave the training as it is.
_NEUTRAL_HOOKS = {
    'CheckpointHook',
    'DetVisualizationHook',
    'IterTimerHook',
    'LoggerHook',
    'VisualizationHook',
    'sb_mm.AttentionStatsHook',
    'sb_mm.CompileHook',
    'sb_mm.DeferredRuntimeInfoHook',
    'sb_mm.DivergenceHook',
    'sb_mm.EpochSeedHook',
    'sb_mm.ValidateResumedHook',
}
# What a result cannot do without.
_NEEDED = {
    'seed',
    'start_epoch',
    'processes',
    'batch',
    'train',
    'val',
    'parameters',
    'hardware',
    'versions',
    'commit',
    'date',
}
# What a run's data are called among the deviations.
_FOUND_DATA = (
    'train dataset',
    'train images',
    'val dataset',
    'val images',
)


@dataclass(frozen=True)
class Start:
    """One start of ``tools/train.py``: a log folder with what it wrote."""

    folder: Path

    @cached_property
    def info(self) -> dict:
        """The content of ``run_info.json``."""
        if not self.has_info:
            raise UserInputError(
                f'{self.folder} holds no vis_data/{RUN_INFO_FILE}: the run '
                'stopped before its first epoch, or was not started with '
                'tools/train.py.'
            )
        try:
            info = json.loads(self._info_file.read_text())
        except ValueError as error:
            raise _damaged(self._info_file, self.folder) from error
        if not isinstance(info, dict) or not info.keys() >= _NEEDED:
            raise _damaged(self._info_file, self.folder)
        return info

    @property
    def _info_file(self) -> Path:
        return self.folder / 'vis_data' / RUN_INFO_FILE

    @property
    def has_info(self) -> bool:
        """Whether its training began."""
        return self._info_file.is_file()

    @cached_property
    def config(self) -> Config:
        """The config as MMEngine dumped it."""
        return read_config(str(self.folder / 'vis_data/config.py'))

    @cached_property
    def lines(self) -> list[dict]:
        """What was logged, but for lines that were cut with the process."""
        file = self.folder / 'vis_data/scalars.json'
        text = file.read_text(errors='replace') if file.is_file() else ''
        return list(whole_lines(text))

    @property
    def diverged(self) -> bool:
        """Whether it stopped because the loss was not finite any more."""
        return self._divergence_file.is_file()

    @property
    def diverged_in(self) -> int:
        """The epoch in which it did."""
        try:
            return json.loads(self._divergence_file.read_text())['epoch']
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self._divergence_file, self.folder) from error

    @property
    def _divergence_file(self) -> Path:
        return self.folder / 'vis_data' / DIVERGENCE_FILE

    def reached(self, epoch: int) -> bool:
        """Whether it logged something of that epoch."""
        return any(e.get('epoch', 0) >= epoch for e in self.lines)


def _damaged(file: Path, folder: Path) -> UserInputError:
    return UserInputError(
        f'{file} is damaged: delete the folder {folder}, or that of the whole '
        'run to train it again.'
    )


def whole_lines(text: str) -> Iterator[dict]:
    """Yield the JSON objects of a log; leave out lines that are none."""
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def find_starts(work_dir: Path) -> list[Start]:
    """Return all starts in a folder, the oldest first."""
    return [Start(folder) for folder in start_folders(work_dir)]


def read_starts(work_dir: Path) -> list[Start]:
    """Return the newest run's starts: its first, and every resume of it.

    A start that was cut before it came any further is left out.

    Raises:
        UserInputError: If there is none, or a resume does not continue what
            is in the folder before it.
    """
    found = find_starts(work_dir)
    if not found:
        raise UserInputError(
            f'{work_dir} holds no run that started: give the --work-dir of '
            'tools/train.py, such as work_dirs/CELL/seed0.'
        )
    starts = [found.pop()]
    while starts[0].info['start_epoch'] > 0:
        if not found:
            _refuse_resume(starts[0])
        before = found.pop()
        if not before.has_info:
            continue
        if not _is_same_run(before, starts[0]):
            _refuse_resume(starts[0])
        if before.reached(starts[0].info['start_epoch']):
            starts.insert(0, before)
    return starts


def config_differences(given: Config, wanted: Config) -> list[str]:
    """Return the settings of one run that another one has not.

    Args:
        given: Of the one.
        wanted: Of the other.

    Returns:
        ``key=value`` for each that matters to the result, with the value
        that was given.
    """
    return _differences(_flat(_on_device(wanted)), _flat(_on_device(given)))


def _differences(wanted: dict, given: dict) -> list[str]:
    return [
        f'{key}={given[key]}' if key in given else f'{key} not set'
        for key in sorted({*wanted, *given})
        if wanted.get(key) != given.get(key)
    ]


def _is_same_run(before: Start, after: Start) -> bool:
    return (
        before.info['seed'] == after.info['seed']
        and not config_differences(before.config, after.config)
        and not data_differences(before.info, after.info)
    )


def data_differences(given: dict, wanted: dict) -> list[str]:
    """Return the batch and numbers of images of one run that another's not.

    Args:
        given: As a run found them, see :mod:`sb_mm.engine.hooks.run_info`.
        wanted: The same of the other, or of :func:`count_data`.
    """
    return _differences(_counts(wanted), _counts(given))


def _counts(info: dict) -> dict[str, int | None]:
    # The packed and the official CIFAR-10 are the same images, if all.
    images = {
        f'{name} images': info[name]['images'] if info[name] else None
        for name in ('train', 'val')
    }
    return {'batch of all processes': info['batch'], **images}


def _on_device(cfg: Config) -> Config:
    """Return a config whose images are on the device, if they can be.

    A run may go on with the other way to read the same images.
    """
    if has_device_data(cfg):
        return cfg
    cfg = copy.deepcopy(cfg)
    # It is left as it is otherwise.
    with contextlib.suppress(UserInputError):
        use_device_data(cfg)
    return cfg


def _refuse_resume(start: Start) -> None:
    raise UserInputError(
        f'{start.folder} resumes at epoch {start.info["start_epoch"]} a run '
        'that is not the one before it in this work directory: keep one work '
        'directory for a run, with one config and one seed.'
    )


def read_history(
    starts: list[Start], cell: Cell
) -> tuple[list[list[float]], float]:
    """Return the run's validations and its training time.

    Args:
        starts: Of the run.
        cell: Tells the metric.

    Returns:
        ``[epoch, percent]`` of every validation, and hours.
    """
    key, factor = _METRICS[cell.dataset]
    # A resume repeats what came after its checkpoint: the later holds.
    lines = [line for start in starts for line in start.lines]
    values = {e['step']: e[key] for e in lines if key in e}
    if starts[-1].diverged:
        # A start before may have come further.
        lost = starts[-1].diverged_in
        values = {e: value for e, value in values.items() if e < lost}
    times = {e['step']: e['time'] for e in lines if 'loss' in e}
    history = [[e, round(v * factor, 3)] for e, v in sorted(values.items())]
    return history, _seconds(times) / 3600


def _seconds(times: dict[int, float]) -> float:
    """Sum up the logged seconds an iteration, by the iteration's number."""
    steps = sorted(times)
    spans = [b - a for a, b in pairwise([0, *steps])]
    return sum(n * times[s] for n, s in zip(spans, steps, strict=True))


def deviations(cell: Cell, start: Start) -> list[str]:
    """Return what a run did otherwise than its cell, as ``key=value``."""
    found = _found_otherwise(cell, start.info)
    return [*config_deviations(cell, start.config), *found]


def config_deviations(cell: Cell, cfg: Config) -> list[str]:
    """Return which settings of a config are not the cell's.

    Where the images are cropped and flipped, by the host's loader or on the
    device, is none of them.
    """
    resolved = cell.resolve()
    if has_device_data(cfg):
        use_device_data(resolved)
    return _differences(_flat(resolved), _flat(cfg))


def expected_deviations(cell: Cell, cfg: Config) -> list[str]:
    """Return the deviations that a config shows before it is run.

    Those are all but what only the data tell; for one process.
    """
    batch = cfg.train_dataloader.batch_size
    return [*config_deviations(cell, cfg), *_other_batch(cell, batch)]


def without_data(changed: Sequence[str]) -> list[str]:
    """Return the deviations but those of the data that a run found."""
    return [c for c in changed if c.split('=')[0] not in _FOUND_DATA]


def execution(cfg: Config) -> dict[str, Any]:
    """Return how a run is computed, as far as no number depends on it.

    Args:
        cfg: Of the run.

    Returns:
        ``images``, who cuts the batches out: ``'device'`` or ``'host'``;
        ``channels_last``, the memory format of batches from the device;
        ``compile``, the mode of ``torch.compile``, None if it is not used.
    """
    on_device = has_device_data(cfg)
    return dict(
        images='device' if on_device else 'host',
        channels_last=on_device
        and bool(cfg.model.data_preprocessor.get('channels_last')),
        compile=_compile_mode(cfg),
    )


def _compile_mode(cfg: Config) -> str | None:
    for hook in cfg.get('custom_hooks') or []:
        if hook['type'] == 'sb_mm.CompileHook':
            return hook.get('mode') or 'default'
    given = cfg.get('compile')
    if isinstance(given, dict):
        return given.get('mode') or 'default'
    return 'default' if given else None


def planned_deviations(cell: Cell, cfg: Config) -> list[str]:
    """Return all deviations that a run will show, with those of the data.

    Raises:
        UserInputError: If the data cannot be used.
    """
    found = _found_otherwise(cell, count_data(cfg))
    return [*config_deviations(cell, cfg), *found]


def count_data(cfg: Config) -> dict:
    """Return what a run of one process will find its data to be.

    Args:
        cfg: Of the run.

    Returns:
        ``train``, ``val`` and ``batch`` as :mod:`sb_mm.engine.hooks.run_info`
        writes them.

    Raises:
        UserInputError: If the data cannot be used.
    """
    loaders = ('train_dataloader', 'val_dataloader')
    check_data(cfg, loaders)
    train, val = (
        describe_data(DATASETS.build(cfg[name].dataset)) for name in loaders
    )
    return dict(train=train, val=val, batch=cfg.train_dataloader.batch_size)


def has_expected_data(changed: Sequence[str]) -> bool:
    """Whether the data that a run found are those that its settings name.

    That is the paper's, or the first images of them by
    ``dataset.indices``.
    """
    return all(
        found.split('=')[0] not in _FOUND_DATA
        or _first_images(found) in changed
        for found in changed
    )


def _first_images(found: str) -> str:
    """Return the setting that explains a number of images."""
    name, _, count = found.partition(' images=')
    return f'{name}_dataloader.dataset.indices={count}'


def _found_otherwise(cell: Cell, info: dict) -> Iterator[str]:
    """Yield what differs in the data and the batch, as the run found them."""
    train, val, kinds = _DATA[cell.dataset]
    for name, count in (('train', train), ('val', val)):
        data = info[name] or dict(types=[], images=0)
        if not set(data['types']) <= kinds:
            yield f'{name} dataset={"+".join(data["types"])}'
        if data['images'] != count:
            yield f'{name} images={data["images"]}'
    yield from _other_batch(cell, info['batch'])


def _other_batch(cell: Cell, batch: int) -> Iterator[str]:
    if batch != cell.resolve().train_dataloader.batch_size:
        yield f'batch of all processes={batch}'


def _flat(cfg: Config) -> dict[str, Any]:
    """Return the settings that matter, by dotted keys."""
    hooks = sorted(set(_hook_types(cfg)) - _NEUTRAL_HOOKS)
    flat: dict[str, Any] = dict(hooks='+'.join(hooks))
    # A resume names what it continues there.
    flat['load_from'] = None if cfg.get('resume') else cfg.get('load_from')
    flat.update(_order_of_parts(cfg))

    def visit(path: str, value: object) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                visit(f'{path}.{key}' if path else key, child)
        elif isinstance(value, (list, tuple)):
            for i, child in enumerate(value):
                visit(f'{path}.{i}', child)
        elif not _is_irrelevant(path):
            # As it is called without sb_mm.IndexedImages around it.
            flat[path.replace('.dataset.dataset.', '.dataset.')] = value

    visit('', {k: v for k, v in cfg.to_dict().items() if k != 'load_from'})
    # What is None might as well be left out, and hosts add it to a config.
    return {key: value for key, value in flat.items() if value is not None}


def _order_of_parts(cfg: Config) -> Iterator[tuple[str, str]]:
    """Yield who reads a part of CIFAR-10, if not in the packed set's order.

    All images are the same in both; the first n of them are not.
    """
    for loader, dataset in dataset_configs(cfg):
        kind = str(dataset.type).split('.')[-1]
        part = dataset.get('indices') is not None and kind == 'CIFAR10'
        if part and not loader.startswith('test_'):
            yield f'{loader}.dataset.type', kind


def _is_irrelevant(path: str) -> bool:
    return path.startswith(_IRRELEVANT) or path.endswith(_IRRELEVANT_ENDS)


def _hook_types(cfg: Config) -> Iterator[str]:
    default = (cfg.get('default_hooks') or {}).values()
    for hook in (*default, *(cfg.get('custom_hooks') or [])):
        if hook:
            yield str(hook['type'])
