"""Checks of checkpoints, before a model is trained."""

import os.path as osp
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from sb_mm.datasets.images import open_regular
from sb_mm.errors import UserInputError, explain, first_few
from sb_mm.weights import check_shapes, load_checkpoint_file, state_dict_of

from ..build import build_model, scope_of
from ..config import dataset_configs
from .classes import check_equal, given_classes, open_dataset
from .options import nodes


def check_start(cfg: Config, trust: bool = False) -> None:
    """Raise UserInputError at a checkpoint that a training cannot use.

    That is one to start from that cannot be loaded without ``trust``, or one
    to resume from of another network, of other classes, or of no training.
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
    if path is None:
        return
    state = state_dict_of(load_checkpoint_file(path, trust=trust))
    own = _skeleton(cfg).state_dict()
    if not any(k in own and own[k].shape == v.shape for k, v in state.items()):
        raise UserInputError(
            f'No tensor of {path} fits the network: use a checkpoint of it, '
            "or, for a backbone's weights, backbone.init_cfg."
        )


def check_checkpoint(cfg: Config, path: str, trust: bool = False) -> dict:
    """Return a checkpoint, file or URL, of this network and these classes.

    Raises:
        UserInputError: Names the first few classes or tensors that differ.
    """
    content = load_checkpoint_file(path, trust=trust)
    _check_classes(cfg, path, content)
    state = state_dict_of(content)
    model = _skeleton(cfg)
    check_shapes(path, model, state)
    own = model.state_dict()
    # Counters that no network of these needs; old files lack them.
    missing = [k for k in own if k not in state and 'batches_tracked' not in k]
    foreign = [k for k in state if k not in own]
    foreign = [k for k in foreign if not k.startswith('data_preprocessor.')]
    faults = {'missing': missing, 'not of this network': foreign}
    for fault, names in faults.items():
        if names:
            raise UserInputError(
                f'{len(names)} tensors are {fault} in {path} '
                f'({first_few(names)}): use the config that it was trained '
                'with.'
            )
    return content


def newest_checkpoint(work_dir: str | Path) -> str | None:
    """Return the newest checkpoint of a work directory, if it has one."""
    file = Path(work_dir, 'last_checkpoint')
    remedy = 'name the checkpoint that is meant'
    if not file.exists():
        return None
    damaged = explain(f'{file} is not what a training writes there', remedy)
    with damaged, open_regular(str(file), remedy) as stream:
        found = stream.read().decode().strip()
    if found == '':  # killed while it was written
        names = ('epoch_*.pth', 'iter_*.pth')
        files = [str(f) for n in names for f in Path(work_dir).glob(n)]
        return max(files, key=osp.getmtime, default=None)
    # As it was then; the folder may have moved.
    moved = osp.join(work_dir, osp.basename(found))
    return moved if osp.isfile(moved) else found


def _check_progress(cfg: Config, path: str, content: dict) -> None:
    # Without these, MMEngine would resume and not say so.
    needed = ['message_hub', 'optimizer']
    if cfg.get('param_scheduler'):
        needed.append('param_schedulers')
    faults = [name for name in needed if not content.get(name)]
    for name in ('epoch', 'iter'):
        count = (content.get('meta') or {}).get(name)
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
    # Those of the test data, as far as they are known.
    datasets = [dataset for _, dataset in dataset_configs(cfg)][::-1]
    with scope_of(cfg):
        known = (given_classes(open_dataset(d)) for d in datasets)
        wanted = next(filter(None, known), [])
    if saved and wanted:
        mine = f'The checkpoint {path}', [*map(str, saved)]
        remedy = 'use the config and data that it was trained with'
        check_equal([mine, ('the dataset', wanted)], remedy)


def _skeleton(cfg: Config) -> nn.Module:
    try:
        with torch.device('meta'):  # without memory for weights
            return build_model(cfg)
    except (NotImplementedError, RuntimeError):  # it computes with values
        return build_model(cfg)
