"""Checks of checkpoints, before a model is built or trained."""

import os.path as osp
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import init_default_scope
from torch import nn

from sb_mm.datasets.annotation import nfc
from sb_mm.datasets.images import open_regular
from sb_mm.errors import UserInputError, first_few
from sb_mm.weights import (
    load_checkpoint_file,
    refuse_conflicts,
    shape_conflicts,
    state_dict_of,
)

from ..build import build_model
from ..config import dataset_configs
from .classes import dataset_class
from .options import nodes


def check_start(cfg: Config, trust: bool = False) -> None:
    """Check the checkpoints that a training continues or starts from.

    Args:
        cfg: Config of the training.
        trust: Run the code that they may bring with them.

    Raises:
        UserInputError: If one cannot be loaded, or the one to resume from is
            not of this network, these classes and a training.
    """
    path = cfg.get('load_from')
    if cfg.get('resume'):
        if path is not None:
            content = check_checkpoint(cfg, path, trust)
            _check_progress(cfg, path, content)
        return
    # Fine-tuning: another head is what the user wants, so only that the files
    # can be loaded is checked; MMEngine logs what does not fit.
    for _, node in nodes(cfg.model):
        if node.get('type') == 'Pretrained' and node['checkpoint']:
            load_checkpoint_file(node['checkpoint'], trust=trust)
    if path is not None:
        _check_fits(cfg, path, load_checkpoint_file(path, trust=trust))


def _check_fits(cfg: Config, path: str, content: dict) -> None:
    """Raise if a training would start from none of a file's tensors."""
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    own = _skeleton(cfg).state_dict()
    if not any(
        name in own and own[name].shape == tensor.shape
        for name, tensor in state_dict_of(content).items()
    ):
        raise UserInputError(
            f'No tensor of {path} fits the network: use a checkpoint of it, '
            "or, for a backbone's weights, backbone.init_cfg."
        )


def check_checkpoint(cfg: Config, path: str, trust: bool = False) -> dict:
    """Raise if a checkpoint was not made by this network on these classes.

    Args:
        cfg: Config of the run.
        path: File or URL.
        trust: Run the code that the file may bring with it.

    Returns:
        What the checkpoint holds.

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
    extra = [k for k in state if k not in own]
    extra = [k for k in extra if not k.startswith('data_preprocessor.')]
    for names, fault in (missing, 'missing'), (extra, 'not of this network'):
        if names:
            raise UserInputError(
                f'{len(names)} tensors are {fault} in {path} '
                f'({first_few(names)}): use the config that it was trained '
                'with.'
            )
    return content


def newest_checkpoint(work_dir: str | Path) -> str | None:
    """Return the newest checkpoint of a work directory, if it has one.

    Raises:
        UserInputError: If the file that names it is damaged.
    """
    file = Path(work_dir, 'last_checkpoint')
    remedy = 'name the checkpoint that is meant'
    if not file.exists():
        return None
    try:
        with open_regular(str(file), remedy) as stream:
            found = stream.read().decode().strip()
        # As it was then; the folder may have moved.
        moved = Path(work_dir, Path(found or '-').name)
        moved_here = moved.is_file()
    except (UnicodeDecodeError, OSError) as error:
        raise UserInputError(
            f'{file} is not the text that a training writes there: {remedy}.'
        ) from error
    if found == '':  # killed while it was written
        names = ('epoch_*.pth', 'iter_*.pth')
        files = [str(f) for n in names for f in Path(work_dir).glob(n)]
        return max(files, key=osp.getmtime, default=None)
    return str(moved) if moved_here else found


def _check_progress(cfg: Config, path: str, content: dict) -> None:
    """Raise if a part is missing without which MMEngine would resume."""
    meta, needed = content.get('meta') or {}, ['message_hub', 'optimizer']
    if cfg.get('param_scheduler'):
        needed.append('param_schedulers')
    faults = [name for name in needed if not content.get(name)]
    for name in ('epoch', 'iter'):
        count = meta.get(name)
        if type(count) is not int or count < 0:  # bool is an int, too
            faults.append(f'meta.{name}')
    if faults:
        raise UserInputError(
            f'The checkpoint {path} does not say how far its training was '
            f'(no valid {first_few(faults)}), which --resume needs: start '
            f'from its weights, with --cfg-options load_from={path}.'
        )


def _check_classes(cfg: Config, path: str, content: dict) -> None:
    meta = (content.get('meta') or {}).get('dataset_meta') or {}
    saved = meta.get('classes') or ()
    if not isinstance(saved, (list, tuple)):
        raise UserInputError(
            f'The checkpoint {path} holds a {type(saved).__name__} as classes '
            'instead of their names: give a checkpoint of MMEngine.'
        )
    saved, wanted = [str(c) for c in saved], _classes_of(cfg)
    pairs = [
        f'class {i} is {a!r} instead of {b!r}'
        for i, (a, b) in enumerate(zip(saved, wanted, strict=False))
        if nfc(a) != nfc(b)
    ]
    if not saved or not wanted or not pairs and len(saved) == len(wanted):
        return
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


def _skeleton(cfg: Config) -> nn.Module:
    """Build the network without memory for its weights."""
    try:
        with torch.device('meta'):
            return build_model(cfg)
    except (NotImplementedError, RuntimeError):
        # A constructor computes with tensor values, which meta has none of.
        return build_model(cfg)
