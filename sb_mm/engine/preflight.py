"""Checks of data and checkpoint, before a model is built or trained."""

import os.path as osp
from collections.abc import Collection, Iterator, Sequence

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from sb_mm.checkpoint import (
    load_checkpoint_file,
    refuse_conflicts,
    shape_conflicts,
    state_dict_of,
)
from sb_mm.errors import UserInputError, first_few

from .config import dataset_configs


def check_data(cfg: Config, loaders: Collection[str]) -> None:
    """Look at every file that the given loaders will read.

    Data sets of sb_mm are checked whole: lists, annotations, pictures. Of
    others, the data root and the annotation file must exist.

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


def _check_dataset(cfg: Config, dataset: dict) -> None:
    if not str(dataset['type']).startswith('sb_mm.'):
        _check_paths(dataset)
        return
    built = DATASETS.build(dict(dataset, pipeline=[]))
    built.check_pictures()
    check_class_count(cfg, built.metainfo['classes'])


def _check_paths(dataset: dict) -> None:
    root, file = dataset.get('data_root') or '', dataset.get('ann_file') or ''
    # mmpretrain's data sets that can download themselves need no folder yet.
    needed = [osp.join(root, file)] if file else []
    missing = [p for p in needed if '://' not in p and not osp.exists(p)]
    if missing:
        raise UserInputError(
            f'{missing[0]} does not exist: set --data-root to the folder of '
            'the data.'
        )


def check_class_count(cfg: Config, classes: Sequence[str]) -> None:
    """Raise if the head's classes are not as many as the data set's.

    Raises:
        UserInputError: Names both numbers.
    """
    head = cfg.model.get('bbox_head') or {}
    count = head.get('num_classes', len(classes))
    if count != len(classes):
        raise UserInputError(
            f'The head has num_classes={count}, but the data set has '
            f'{len(classes)} classes ({first_few(list(classes))}): set '
            'model.bbox_head.num_classes to that number.'
        )


def check_checkpoint(cfg: Config, path: str, trust: bool = False) -> None:
    """Raise if a checkpoint was not made by this network on these classes.

    Args:
        cfg: Config of the run.
        path: File or URL.
        trust: Run the code that the file may bring with it.

    Raises:
        UserInputError: Names the first few classes or tensors that differ.
    """
    content = load_checkpoint_file(path, trust=trust)
    _check_classes(cfg, path, content)
    state = state_dict_of(content)
    model = _skeleton(cfg)
    refuse_conflicts(path, shape_conflicts(model, state))
    own = model.state_dict().keys()
    _refuse_names(path, [k for k in own if k not in state], 'are missing')
    _refuse_names(
        path, [k for k in state if k not in own], 'are not of this network'
    )


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
        f'data set has {len(wanted)} ({first_few(pairs) or "others follow"}): '
        'use the config and the data that it was trained with.'
    )


def _classes_of(cfg: Config) -> list[str]:
    """Return the class names of the test data, as far as they are known."""
    for _, dataset in reversed(list(dataset_configs(cfg))):
        given = (dataset.get('metainfo') or {}).get('classes')
        cls = DATASETS.get(dataset['type'])
        classes = given or getattr(cls, 'METAINFO', {}).get('classes')
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
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    try:
        with torch.device('meta'):
            return MODELS.build(cfg.model)
    except (NotImplementedError, RuntimeError):
        # A constructor computes with tensor values, which meta has none of.
        return MODELS.build(cfg.model)
