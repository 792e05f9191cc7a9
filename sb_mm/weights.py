"""Checkpoints are data: no code of theirs is run."""

import os
import os.path as osp
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pickle import UnpicklingError
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn, serialization

from .errors import UserInputError, explain, first_few, first_line

# How PyTorch says that a file wants more than it allows; any other complaint
# of its unpickler means damage. Operands 147 and 149 are of pickle's protocol
# 4, which `torch.save` does not write.
_NEEDS_MORE = re.compile(
    r'[^:\n]*(unsupported (global|class|operand 14[79]\b)|is blocked'
    r'|call reduce|can only (build|create)).*?(?=\. |$)',
    re.IGNORECASE | re.MULTILINE,
)
# They decide what `torch.load` does: not here.
_FORCED = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_host_load = CheckpointLoader.load_checkpoint
_torch_load = torch.load
_trusted = False


@contextmanager
def weights_only(enabled: bool = True) -> Iterator[None]:
    """Have MMEngine load its checkpoints with :func:`load_checkpoint_file`.

    Those of ``load_from``, ``resume`` and ``init_cfg`` are data then, or all
    trusted if not ``enabled``. A ``torch.load`` of the user's own code stays
    what it is.
    """
    safe = patch.object(
        CheckpointLoader, 'load_checkpoint', load_checkpoint_file
    )
    with safe, patch(f'{__name__}._trusted', not enabled):
        yield


def load_checkpoint_file(
    path: str,
    map_location: Any = 'cpu',
    logger: Any = 'silent',
    trust: bool = False,
) -> dict:
    """Read a checkpoint file or URL, as MMEngine's ``CheckpointLoader`` does.

    Args:
        path: Of the file, or its address.
        map_location: See ``torch.load``.
        logger: Where MMEngine says what it loads.
        trust: Run the code that the file may bring with it; so does an
            enclosing ``weights_only(False)``, and nothing else.

    Raises:
        UserInputError: If there is no such file, if it is no checkpoint, or
            if it needs more than tensors and MMEngine's classes.
    """
    trust = trust or _trusted
    fault = 'is a folder' if osp.isdir(path) else 'cannot be opened'
    remedy = 'check path and permissions, or the address and the network'
    read = patch.object(torch, 'load', partial(_read, path, trust))
    with explain(f'The checkpoint {path} {fault}', remedy), read:
        # MMEngine finds or fetches the file, by the scheme of its address.
        content = _host_load(path, map_location, logger)
    _check_form(path, content)
    if not trust and isinstance(content.get('meta'), dict):
        # A Python config of old checkpoints, which `Runner.resume` runs.
        content['meta'].pop('config', None)
    return content


def _read(
    path: str, trust: bool, file: Any, map_location: Any = None, **_
) -> object:
    """Stand in for ``torch.load`` where MMEngine loads a checkpoint."""
    if torch.__version__ < '2.6':
        raise UserInputError(
            'Loading checkpoints safely needs torch 2.6 or later, but this '
            f'is {torch.__version__}: upgrade torch.'
        )
    forced = dict.fromkeys(_FORCED, '0')
    try:
        with patch.dict(os.environ, forced), _mmengine_classes():
            return _torch_load(file, map_location, weights_only=not trust)
    except PermissionError:
        raise
    except Exception as error:  # a damaged file can raise anything
        if (found := _NEEDS_MORE.search(str(error))) and not trust:
            raise UserInputError(
                f"The checkpoint {path} holds more than tensors and MMEngine's"
                f' records ({found[0].strip()}), and loading it could run '
                'code from it: if you trust its source, add '
                '--trust-checkpoint.'
            ) from error
        # The unpickler's message is a page of advice.
        pickled = isinstance(error, UnpicklingError)
        reason = type(error).__name__ if pickled else first_line(error)
        # PyTorch keeps what it has downloaded.
        fetched = file != osp.expanduser(path) and osp.isfile(str(file))
        remedy = f'; delete {file} to fetch it again' if fetched else ''
        raise UserInputError(
            f'The checkpoint {path} cannot be read ({reason}): it is damaged '
            f'or no checkpoint{remedy}.'
        ) from error


@contextmanager
def _mmengine_classes() -> Iterator[None]:
    """Allow MMEngine's log history.

    Its ``HistoryBuffer`` objects hold NumPy arrays and refer to their own
    methods by ``getattr``. The real one, which the maintained MMEngine allows,
    is a way to run code: it reaches the ``__globals__`` of PyTorch's own
    functions.
    """
    before = serialization.get_safe_globals()
    real = (getattr, (getattr, 'builtins.getattr'))
    core = getattr(np, '_core', None) or np.core
    allowed = [
        *(item for item in before if item not in real),
        *(HistoryBuffer, (_history_method, 'builtins.getattr'), slice),
        *(np.ndarray, core.multiarray._reconstruct),
        *(np.dtype, core.multiarray.scalar),
        *(type(np.dtype(t)) for t in ('f4', 'f8', 'i4', 'i8', 'u4', '?')),
    ]
    serialization.clear_safe_globals()
    try:
        with serialization.safe_globals(allowed):
            yield
    finally:
        serialization.add_safe_globals(before)


def _history_method(owner: object, name: str) -> Any:
    """Stand in for ``getattr``, for the one use that MMEngine makes of it."""
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    raise UnpicklingError(
        f'Unsupported global: getattr of {owner!r} and {name!r}'
    )


def _check_form(path: str, content: object) -> None:
    """Raise unless what is read by name is a dictionary of names."""
    parts = {'content': content}
    if isinstance(content, dict) and 'state_dict' in content:
        parts['state_dict'] = content['state_dict']
        meta = parts['meta'] = content.get('meta') or {}
        if isinstance(meta, dict):
            parts['dataset_meta'] = meta.get('dataset_meta') or {}
    for key, part in parts.items():
        if not isinstance(part, dict) or {type(name) for name in part} - {str}:
            raise UserInputError(
                f'The {key} of the checkpoint {path}, a '
                f'{type(part).__name__}, is no dictionary with names as keys: '
                'give a checkpoint of MMEngine or a state_dict.'
            )


def state_dict_of(content: dict) -> dict[str, Tensor]:
    """Return a loaded checkpoint's weights, without a ``module.`` before."""
    for key in ('state_dict', 'model'):
        if isinstance(content.get(key), dict):
            content = content[key]
    weights = {k: v for k, v in content.items() if isinstance(v, Tensor)}
    return {k.removeprefix('module.'): v for k, v in weights.items()}


def check_shapes(
    checkpoint: str, module: nn.Module, state: dict[str, Tensor]
) -> None:
    """Raise UserInputError if a checkpoint's shapes are not the network's.

    A plain convolution's kernel fits a bank of kernels of that shape, see
    :class:`~sb_mm.models.layers.dynamic_conv.DynamicConv2d`.
    """
    own = {k: [tuple(v.shape)] for k, v in module.state_dict().items()}
    for prefix, part in module.named_modules():
        for name, shape in getattr(part, 'plain_shapes', dict)().items():
            own[f'{prefix}.{name}'].append(shape)
    faults = [
        f'{name} is {tuple(tensor.shape)} instead of {own[name][0]}'
        for name, tensor in state.items()
        if name in own and tuple(tensor.shape) not in own[name]
    ]
    if faults:
        raise UserInputError(
            f'{len(faults)} tensors of {checkpoint} do not fit the network '
            f'({first_few(faults)}): use the config that it was trained with, '
            'or weights of the same width.'
        )


def load_pretrained(
    module: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    map_location: str = 'cpu',
) -> None:
    """Load published trunk weights and log what came in and what did not.

    The names in the file or URL begin with ``prefix``, such as ``backbone.``.

    Raises:
        UserInputError: If no tensor of it has a name of the module, or if the
            shapes of some differ.
    """
    state = state_dict_of(load_checkpoint_file(checkpoint, map_location))
    start = f'{prefix.rstrip(".")}.' if prefix else ''
    own = module.state_dict()
    matched = {k: state[start + k] for k in own if start + k in state}
    if not matched:
        raise UserInputError(
            f'No tensor of {checkpoint} fits {type(module).__name__} with '
            f'prefix={prefix!r}: the file has {first_few(list(state))}, the '
            f'network {first_few(list(own))}. Correct the prefix; weights of '
            'torchvision need tools/convert_weights.py first.'
        )
    check_shapes(checkpoint, module, matched)
    module.load_state_dict(matched, strict=False)
    missing = [k for k in own if k not in matched]
    attention = {'attention', 'gate', 'temperature'}
    gates = [k for k in missing if attention & set(k.split('.'))]
    trunk = [k for k in missing if k not in gates]
    unused = sum(k.startswith(start) for k in state) - len(matched)
    print_log(
        f'{checkpoint}: loaded {len(matched)} of {len(own)} tensors; '
        f'{len(gates)} attention tensors keep their start values '
        f'({first_few(gates) or "none"}); {len(trunk)} trunk tensors were not '
        f'in the file ({first_few(trunk) or "none"}); {unused} tensors of the '
        'file were not used.',
        logger='current',
    )
