"""From a config file and command-line options to the config of a run."""

import argparse
import os.path as osp
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict

from sb_mm.errors import UserInputError

_REPOSITORY = Path(__file__).resolve().parents[2]
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def load_config(args: argparse.Namespace) -> Config:
    """Read the config that ``args`` names and apply the common options.

    Raises:
        UserInputError: If the config does not exist or cannot be read.
    """
    cfg = read_config(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.data_root is not None:
        set_data_root(cfg, args.data_root)
    resolve_data_roots(cfg)
    cfg.launcher = args.launcher
    # Priority as in mmdet: option, config, name of the config file.
    name = Path(args.config).stem
    default = cfg.get('work_dir') or osp.join('./work_dirs', name)
    cfg.work_dir = args.work_dir or default
    return cfg


def read_config(path: str) -> Config:
    """Read a config file.

    Raises:
        UserInputError: If it does not exist, is not Python, JSON or YAML, or
            names a base or an import that is not there.
    """
    if not osp.isfile(path) and '::' not in str(path):
        raise UserInputError(
            f'The config {path} does not exist: give the path of a config '
            'file, such as configs/ssd_sb_voc.py.'
        )
    try:
        return Config.fromfile(path)
    except (OSError, SyntaxError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserInputError(
            f'The config {path} cannot be read: {reason}.'
        ) from error


def dataset_configs(cfg: Config) -> Iterator[tuple[str, ConfigDict]]:
    """Yield (loader's name, config) of each innermost data set."""
    for loader in _LOADERS:
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


def set_data_root(cfg: Config, root: str) -> None:
    """Let every loader and the evaluators' annotation files use ``root``."""
    old = cfg.get('data_root')
    for _, dataset in dataset_configs(cfg):
        dataset.data_root = root
    if old is not None:
        cfg.data_root = root
        for name in ('val_evaluator', 'test_evaluator'):
            _move_annotations(cfg.get(name), old, root)


def _move_annotations(evaluators: object, old: str, root: str) -> None:
    """COCO-like evaluators name an annotation file of their own."""
    several = isinstance(evaluators, (list, tuple))
    for evaluator in evaluators if several else [evaluators or {}]:
        file = evaluator.get('ann_file')
        if file and file.startswith(old):
            evaluator['ann_file'] = osp.join(root, file.removeprefix(old))


def resolve_data_roots(cfg: Config) -> None:
    """Find relative data roots from any working directory.

    One that does not exist below the working directory, but does below the
    repository of sb_mm, is taken from there.
    """
    for _, dataset in dataset_configs(cfg):
        root = dataset.get('data_root')
        if root and not osp.exists(root) and (_REPOSITORY / root).exists():
            dataset.data_root = str(_REPOSITORY / root)
