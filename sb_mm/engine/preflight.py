"""Checks of data and checkpoint, before a model is built or trained."""

import os
import os.path as osp
from collections.abc import Collection, Iterator
from inspect import signature

import torch
from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from sb_mm.checkpoint import (
    load_checkpoint_file,
    refuse_conflicts,
    shape_conflicts,
    state_dict_of,
)
from sb_mm.errors import UserInputError, first_few, first_line

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


def check_checkpoint(cfg: Config, path: str, trust: bool = False) -> None:
    """Raise if a checkpoint was not made by this network on these classes.

    Args:
        cfg: Config of the run.
        path: File or URL.
        trust: Run the code that the file may bring with it.

    Raises:
        UserInputError: Names the first few classes or tensors that differ.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    content = load_checkpoint_file(path, trust=trust)
    _check_classes(cfg, path, content)
    state = state_dict_of(content)
    model = _skeleton(cfg)
    refuse_conflicts(path, shape_conflicts(model, state))
    own = model.state_dict().keys()
    # A counter that no network of these needs; old files lack it.
    missing = [k for k in own if k not in state]
    missing = [k for k in missing if not k.endswith('num_batches_tracked')]
    _refuse_names(path, missing, 'are missing')
    extra = [k for k in state if k not in own]
    extra = [k for k in extra if not k.startswith('data_preprocessor.')]
    _refuse_names(path, extra, 'are not of this network')


def _refuse_names(path: str, names: list[str], what: str) -> None:
    if names:
        raise UserInputError(
            f'{len(names)} tensors {what} in {path} ({first_few(names)}): use '
            'the config that it was trained with.'
        )


def _check_classes(cfg: Config, path: str, content: dict) -> None:
    meta = (content.get('meta') or {}).get('dataset_meta') or {}
    saved = [str(c) for c in meta.get('classes') or ()]
    wanted = _classes_of(cfg)
    if not saved or not wanted or saved == wanted:
        return
    pairs = [
        f'class {i} is {a!r} instead of {b!r}'
        for i, (a, b) in enumerate(zip(saved, wanted, strict=False))
        if a != b
    ]
    raise UserInputError(
        f'The checkpoint {path} was trained on {len(saved)} classes and the '
        f'dataset has {len(wanted)} ({first_few(pairs) or "others follow"}): '
        'use the config and the data that it was trained with.'
    )


def _classes_of(cfg: Config) -> list[str]:
    """Return the class names of the test data, as far as they are known."""
    for _, dataset in reversed(list(dataset_configs(cfg))):
        given = (dataset.get('metainfo') or {}).get('classes')
        cls = dataset_class(dataset)
        classes = given or getattr(cls, 'METAINFO', {}).get('classes')
        if isinstance(classes, str) and osp.isfile(classes):
            classes = list_from_file(classes)
        if classes and not isinstance(classes, str):
            return [str(c) for c in classes]
    return []


def pretrained_files(config: object) -> Iterator[str]:
    """Yield the checkpoint of every ``type='Pretrained'`` in a config."""
    if isinstance(config, dict):
        if config.get('type') == 'Pretrained':
            yield config['checkpoint']
        for value in config.values():
            yield from pretrained_files(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from pretrained_files(value)


def _skeleton(cfg: Config) -> nn.Module:
    """Build the network without memory for its weights."""
    try:
        with torch.device('meta'):
            return MODELS.build(cfg.model)
    except (NotImplementedError, RuntimeError):
        # A constructor computes with tensor values, which meta has none of.
        return MODELS.build(cfg.model)
