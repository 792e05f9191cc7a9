"""Checks of a checkpoint, before a model is built or trained."""

import os.path as osp
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from sb_mm.checkpoint import (
    load_checkpoint_file,
    refuse_conflicts,
    shape_conflicts,
    state_dict_of,
)
from sb_mm.errors import UserInputError, first_few

from .checks import check_data
from .classes import dataset_class
from .config import dataset_configs

__all__ = ['check_checkpoint', 'check_data', 'pretrained_files']


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
