"""Checks of data, before a model is built or trained."""

import os
import os.path as osp
from collections.abc import Collection
from inspect import signature

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope

from sb_mm.errors import UserInputError, first_few, first_line

from .checkpoints import check_checkpoint, pretrained_files  # noqa: F401
from .classification_data import (
    check_class_count,
    check_classification_data,
    dataset_class,
)
from .config import dataset_configs


def check_data(cfg: Config, loaders: Collection[str]) -> None:
    """Look at every file that the given loaders will read.

    Datasets of sb_mm are checked whole: lists, annotations, images. Of
    mmpretrain's CIFAR and folders of images, files and classes are, as in
    :func:`check_classification_data`. Of others, the data root and the
    annotation file must exist.

    Args:
        cfg: Config of the run.
        loaders: Names such as ``'train_dataloader'``.

    Raises:
        UserInputError: Names the first few missing or unusable files.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    checked: list[ConfigDict] = []
    for loader, dataset in dataset_configs(cfg):
        if loader not in loaders:
            continue
        key = {k: v for k, v in dataset.items() if k != 'pipeline'}
        if key not in checked:
            checked.append(key)
            _check_dataset(cfg, key)
    check_classification_data(cfg, checked)


def _check_dataset(cfg: Config, dataset: dict) -> None:
    if not dataset_class(dataset).__module__.startswith('sb_mm.'):
        _check_paths(dataset)
        return
    try:
        built = DATASETS.build(dict(dataset, pipeline=[]))
    except TypeError as error:
        raise UserInputError(
            f'The dataset {dataset["type"]} cannot be made '
            f'({first_line(error)}): correct its settings.'
        ) from error
    built.check_images()
    check_class_count(cfg, built.metainfo['classes'])


def _check_paths(dataset: dict) -> None:
    """Check that the folder and the files of a host's dataset are there."""
    root = dataset.get('data_root') or ''
    prefixes = dataset.get('data_prefix') or {}
    prefixes = {'': prefixes} if isinstance(prefixes, str) else prefixes
    parts = [dataset.get('ann_file') or '', *prefixes.values()]
    needed = [root, *(osp.join(root, part) for part in parts if part)]
    missing = [path for path in needed if path and not _is_there(path)]
    if missing and not _can_download(dataset):
        raise UserInputError(
            f'{first_few(missing)} not found or empty: set --data-root to the '
            'folder of the data.'
        )


def _is_there(path: str) -> bool:
    if '://' in path or osp.isfile(path):
        return True
    return osp.isdir(path) and len(os.listdir(path)) > 0


def _can_download(dataset: dict) -> bool:
    """Whether it is one of mmpretrain's datasets that fetch themselves."""
    accepted = signature(dataset_class(dataset).__init__).parameters
    return 'download' in accepted and dataset.get('download', True)
