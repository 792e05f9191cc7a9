"""From a config file and command-line options to the config of a training."""

import os.path as osp
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE

from sb_mm.errors import UserInputError, first_line, root_cause
from sb_mm.files import find_config, product_root

from .checks.options import apply_options


def load_config(
    path: str,
    options: Mapping[str, object] | None = None,
    data_root: str | None = None,
    work_dir: str | None = None,
    launcher: str = 'none',
) -> Config:
    """Read a config and apply the options of the command line.

    Those of ``options`` are values by dotted keys; ``data_root`` is for every
    loader at once, ``launcher`` none, pytorch, slurm or mpi.

    Raises:
        UserInputError: If the config cannot be read, or an option or an
            argument of a class of sb_mm names nothing.
    """
    cfg = read_config(path)
    scope = cfg.get('default_scope')
    if scope in MODULE2PACKAGE and not find_spec(scope):
        raise UserInputError(
            f'The config {path} needs {scope}, which is not installed.'
        )
    # mmdet's models import it as well, and MMEngine does not say why that
    # fails; the tools do.
    if find_spec('mmpretrain'):
        import_module('mmpretrain')
    options = dict(options or {})
    # The variable alone would reach no loader.
    root = data_root or options.pop('data_root', None)
    apply_options(cfg, options)
    # See ResumedScheduleHook.
    cfg.schedule_named = any(k.startswith('param_scheduler') for k in options)
    set_data_root(cfg, root)
    cfg.launcher = launcher
    # Priority as in mmdet: option, config, name of the config file.
    default = osp.join('./work_dirs', Path(path).stem)
    cfg.work_dir = work_dir or cfg.get('work_dir') or default
    return cfg


def read_config(path: str) -> Config:
    """Read a config, or raise UserInputError if it is none."""
    path = find_config(str(path))
    example = 'a whole config, such as configs/ssd_sb_voc.py'
    if not osp.isfile(path) and '::' not in path:
        raise UserInputError(
            f'The config {path} does not exist: give the path of {example}.'
        )
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is code, and can raise anything
        # Of custom_imports, MMEngine says that they fail, and not why.
        failed = isinstance(error, ImportError)
        reason = first_line(root_cause(error) if failed else error)
        raise UserInputError(
            f'The config {path} cannot be read ({reason}): '
            'correct it and the files and packages that it names.'
        ) from error
    if not cfg.get('model'):
        raise UserInputError(
            f'The config {path} has no model: give {example}.'
        )
    return cfg


def dataset_configs(cfg: Config) -> Iterator[tuple[str, ConfigDict]]:
    """Yield (loader's name, config) of each innermost dataset."""
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(loader):
            for leaf in _leaves(cfg[loader].dataset):
                yield loader, leaf


def _leaves(dataset: ConfigDict) -> Iterator[ConfigDict]:
    inner = dataset.get('datasets') or dataset.get('dataset')
    if inner is None:
        yield dataset
        return
    for child in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from _leaves(child)


def metrics_of(cfg: Config) -> Iterator[tuple[str, dict]]:
    """Yield (setting's name, config) of each metric."""
    for name in ('val_evaluator', 'test_evaluator'):
        metrics = cfg.get(name) or []
        if isinstance(metrics, dict):
            yield name, metrics
        else:
            yield from ((f'{name}.{i}', m) for i, m in enumerate(metrics))


def set_data_root(cfg: Config, root: str | None) -> None:
    """Let loaders and evaluators use one folder of data, or find their own.

    What is not below the working directory may be below sb_mm's repository.
    """
    datasets = [d for _, d in dataset_configs(cfg) if root or 'data_root' in d]
    for old in {d.get('data_root') for d in datasets}:
        _move_annotations(cfg, old, _find(root or old))
    for dataset in datasets:
        dataset.data_root = _find(root or dataset.data_root)
        folder = Path(dataset.data_root, dataset.get('split') or '-')
        if dataset.get('type') == 'CIFAR10' and folder.is_dir():
            # {train,test}/<class>/*.png, in place of the published files.
            dataset.type = 'CustomDataset'
            dataset.data_prefix = dataset.pop('split')
            dataset.pipeline.insert(0, ConfigDict(type='LoadImageFromFile'))
            cfg.data_preprocessor.to_rgb = True  # as mmpretrain's CIFAR10 is


def _find(root: str | None) -> str | None:
    own = product_root() / (root or '')
    return str(own) if root and not osp.exists(root) and own.exists() else root


def _move_annotations(cfg: Config, old: str | None, new: str | None) -> None:
    """COCO-like evaluators name an annotation file of their own."""
    for _, metric in metrics_of(cfg):
        file = metric.get('ann_file')
        if old and file and file.startswith(old):
            relative = file.removeprefix(old).lstrip('/')
            metric['ann_file'] = osp.join(new, relative)
