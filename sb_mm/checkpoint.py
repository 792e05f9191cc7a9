"""Loading of checkpoints without running code from them."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from .errors import UserInputError, first_few

_FORCE_SAFE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_FORCE_UNSAFE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


_MARK = 'WeightsUnpickler error:'
# How PyTorch says that a file wants more than it allows; any other complaint
# of its unpickler means damage.
_NEEDS_MORE = re.compile(
    r'unsupported (global|class)|is blocked|call reduce'
    r'|can only (build|create)',
    re.IGNORECASE,
)


def _history_method(owner: object, name: str) -> Any:
    """Stand in for ``getattr``, for the one use that MMEngine makes of it.

    The real one would be a way to run code: from any allowed object it
    reaches the ``__globals__`` of PyTorch's own functions.
    """
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    raise UnpicklingError(
        f'Unsupported global: getattr of {owner!r} and {name!r}'
    )


def allow_mmengine_classes() -> None:
    """Let ``torch.load(weights_only=True)`` read MMEngine's checkpoints.

    MMEngine keeps its log history in a checkpoint: ``HistoryBuffer`` objects,
    which hold NumPy arrays and refer to their own methods. MMEngine 0.10.7
    does not tell torch >= 2.6 about them, and therefore cannot load its own
    checkpoints.
    """
    if torch.__version__ < '2.6':
        raise UserInputError(
            f'Loading checkpoints safely needs torch 2.6 or later, but this '
            f'is {torch.__version__}: upgrade torch.'
        )
    core = getattr(np, '_core', None) or np.core
    dtypes = {type(np.dtype(t)) for t in ('f4', 'f8', 'i4', 'i8', 'u4', '?')}
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_history_method, 'builtins.getattr'),
            slice,
            np.ndarray,
            np.dtype,
            core.multiarray._reconstruct,
            core.multiarray.scalar,
            *dtypes,
        ]
    )


@contextmanager
def weights_only(enabled: bool = True) -> Iterator[None]:
    """Force every ``torch.load`` inside to be weights-only, or to be not.

    The maintained MMEngine falls back to an unsafe load when a safe one
    fails; inside this context the fall-back fails too.
    """
    allow_mmengine_classes()
    saved = {k: os.environ.pop(k, None) for k in (_FORCE_SAFE, _FORCE_UNSAFE)}
    os.environ[_FORCE_SAFE if enabled else _FORCE_UNSAFE] = '1'
    try:
        yield
    finally:
        os.environ.pop(_FORCE_SAFE if enabled else _FORCE_UNSAFE, None)
        os.environ.update({k: v for k, v in saved.items() if v is not None})


def load_checkpoint_file(
    path: str, map_location: str = 'cpu', trust: bool = False
) -> dict:
    """Read a checkpoint file or URL.

    Args:
        path: Anything that MMEngine's ``CheckpointLoader`` understands.
        map_location: See ``torch.load``.
        trust: Run the code that the file may bring with it; so does an
            enclosing ``weights_only(False)``.

    Raises:
        UserInputError: If there is no such file, if it is not a checkpoint, or
            if it needs more than tensors and MMEngine's classes and is not
            trusted.
    """
    trust = trust or os.environ.get(_FORCE_UNSAFE) == '1'
    try:
        with weights_only(not trust):
            content = _read(path, map_location)
    except FileNotFoundError as error:
        raise UserInputError(
            f'The checkpoint {path} does not exist: check the path.'
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise _refusal(path, error, trust) from error
    if not isinstance(content, dict):
        raise UserInputError(
            f'The checkpoint {path} holds a {type(content).__name__} instead '
            'of a dictionary of tensors: give a checkpoint of MMEngine or a '
            'state_dict.'
        )
    return content


def _read(path: str, map_location: str) -> object:
    # Not through MMEngine's loader for local files: the maintained one allows
    # `getattr`, and tries again after a refusal.
    if '://' not in path:
        return torch.load(os.path.expanduser(path), map_location)
    return CheckpointLoader.load_checkpoint(path, map_location, 'silent')


def _refusal(path: str, error: Exception, trusted: bool) -> UserInputError:
    reason = _reason(error)
    if '://' in path:
        return UserInputError(
            f'The checkpoint {path} cannot be fetched or read ({reason}): '
            'check the address and the network, or give a local file.'
        )
    if os.path.isdir(path):
        return UserInputError(
            f'The checkpoint {path} is a folder: give a file in it.'
        )
    if _NEEDS_MORE.search(reason) and not trusted:
        return UserInputError(
            f"The checkpoint {path} holds more than tensors and MMEngine's "
            f'records ({reason}), and loading it could run code from it: if '
            'you trust its source, add --trust-checkpoint.'
        )
    return UserInputError(
        f'The checkpoint {path} cannot be read ({reason}): it is damaged or '
        'no checkpoint.'
    )


def _reason(error: Exception) -> str:
    """Return the line that matters of PyTorch's page-long message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    marked = [line for line in lines if _MARK in line]
    wanted = [line for line in lines if _NEEDS_MORE.search(line)]
    line = [*wanted, *marked, *lines, type(error).__name__][0]
    line = line.split(_MARK)[-1].strip().split('. ')[0].rstrip('.')
    return line or type(error).__name__


def state_dict_of(content: dict) -> dict[str, Tensor]:
    """Return the weights of a loaded checkpoint, without ``module.``."""
    for key in ('state_dict', 'model'):
        if isinstance(content.get(key), dict):
            content = content[key]
    weights = {k: v for k, v in content.items() if isinstance(v, Tensor)}
    return {k.removeprefix('module.'): v for k, v in weights.items()}


def shape_conflicts(
    module: nn.Module, state: dict[str, Tensor]
) -> list[tuple[str, tuple, tuple]]:
    """List (name, shape in the file, shape in the module) where they differ.

    A plain convolution's kernel fits a bank of kernels of that shape, see
    :class:`~sb_mm.models.layers.dynamic_conv.DynamicConv2d`.
    """
    own = {k: [tuple(v.shape)] for k, v in module.state_dict().items()}
    for prefix, part in module.named_modules():
        for name, shape in getattr(part, 'plain_shapes', dict)().items():
            own[f'{prefix}.{name}'].append(shape)
    return [
        (name, tuple(tensor.shape), own[name][0])
        for name, tensor in state.items()
        if name in own and tuple(tensor.shape) not in own[name]
    ]


def load_pretrained(
    module: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    map_location: str = 'cpu',
) -> None:
    """Load published trunk weights and log what came in and what did not.

    Args:
        module: The network; tensors whose name has ``attention`` or ``gate``
            as a part belong to its attention, the others to its trunk.
        checkpoint: File or URL.
        prefix: What the names in the file begin with, such as ``backbone.``.
        map_location: See ``torch.load``.

    Raises:
        UserInputError: If no tensor of the file has a name of the module, or
            if the shapes of some differ.
    """
    state = state_dict_of(load_checkpoint_file(checkpoint, map_location))
    start = f'{prefix.rstrip(".")}.' if prefix else ''
    named = {
        k.removeprefix(start): v
        for k, v in state.items()
        if k.startswith(start)
    }
    own = module.state_dict()
    matched = {k: v for k, v in named.items() if k in own}
    if not matched:
        raise UserInputError(
            f'No tensor of {checkpoint} fits {type(module).__name__} with '
            f'prefix={prefix!r}: the file has {first_few(list(state))}, the '
            f'network {first_few(list(own))}. Correct the prefix; weights of '
            'torchvision need tools/convert_weights.py first.'
        )
    refuse_conflicts(checkpoint, shape_conflicts(module, matched))
    module.load_state_dict(matched, strict=False)
    missing = [k for k in own if k not in matched]
    gates = [k for k in missing if {'attention', 'gate'} & set(k.split('.'))]
    gates += [k for k in missing if k.endswith('.temperature')]
    trunk = [k for k in missing if k not in gates]
    print_log(
        f'{checkpoint}: loaded {len(matched)} of {len(own)} tensors; '
        f'{len(gates)} attention tensors keep their start values'
        f'{_listing(gates)}; {len(trunk)} trunk tensors were not in the file'
        f'{_listing(trunk)}; {len(named) - len(matched)} tensors of the file '
        'were not used.',
        logger='current',
    )


def refuse_conflicts(
    checkpoint: str, conflicts: list[tuple[str, tuple, tuple]]
) -> None:
    """Raise if a checkpoint's shapes differ from the network's.

    Raises:
        UserInputError: Names the first few.
    """
    if conflicts:
        shown = [f'{n} is {a} instead of {b}' for n, a, b in conflicts]
        raise UserInputError(
            f'{len(conflicts)} tensors of {checkpoint} do not fit the '
            f'network ({first_few(shown, "; ")}): use the config that it was '
            'trained with, or weights of the same width.'
        )


def _listing(names: list[str]) -> str:
    return f' ({first_few(names)})' if names else ''
