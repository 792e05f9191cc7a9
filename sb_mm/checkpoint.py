"""Loading of checkpoints without running code from them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from .errors import UserInputError, first_few

_FORCE_SAFE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_FORCE_UNSAFE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


def allow_mmengine_classes() -> None:
    """Let ``torch.load(weights_only=True)`` read MMEngine's checkpoints.

    MMEngine keeps its log history in a checkpoint: ``HistoryBuffer`` objects,
    which hold NumPy arrays and refer to their own methods by ``getattr``.
    MMEngine 0.10.7 does not tell torch >= 2.6 about them, and therefore cannot
    load its own checkpoints. None of these runs code from the file: what
    ``getattr`` returns cannot be called by the weights-only unpickler.
    """
    core = getattr(np, '_core', None) or np.core
    dtypes = {type(np.dtype(t)) for t in ('f4', 'f8', 'i4', 'i8', 'u4', '?')}
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            getattr,
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
        trust: Run the code that the file may bring with it.

    Raises:
        UserInputError: If there is no such file, if it is not a checkpoint, or
            if it needs more than tensors and MMEngine's classes and is not
            trusted.
    """
    try:
        with weights_only(not trust):
            content = CheckpointLoader.load_checkpoint(
                path, map_location, logger='silent'
            )
    except FileNotFoundError as error:
        raise UserInputError(
            f'The checkpoint {path} does not exist: check the path.'
        ) from error
    except UnpicklingError as error:
        raise UserInputError(
            f'The checkpoint {path} holds more than tensors and '
            f'MMEngine records ({_reason(error)}), and loading it could run '
            'code from it: if you trust its source, add --trust-checkpoint.'
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise UserInputError(
            f'The checkpoint {path} cannot be read ({_reason(error)}): it is '
            'damaged or no checkpoint.'
        ) from error
    if not isinstance(content, dict):
        raise UserInputError(
            f'The checkpoint {path} holds a {type(content).__name__} instead '
            'of a dictionary of tensors: give a checkpoint of MMEngine or a '
            'state_dict.'
        )
    return content


def _reason(error: Exception) -> str:
    """Return what matters of PyTorch's page-long message."""
    text = str(error) or type(error).__name__
    for line in text.splitlines():
        if 'Unsupported' in line or 'WeightsUnpickler error' in line:
            text = line.split('WeightsUnpickler error:')[-1]
    return text.strip().splitlines()[0].rstrip('. ')


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
    own = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    banks = {
        f'{name}.weight'
        for name, part in module.named_modules()
        if type(part).__name__ == 'DynamicConv2d'
    }
    conflicts = []
    for name, tensor in state.items():
        given = tuple(tensor.shape)
        fits = given == own.get(name, given)
        if name in banks:
            fits = given in (own[name], own[name][1:])
        if not fits:
            conflicts.append((name, given, own[name]))
    return conflicts


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
            f'network {first_few(list(own))}.'
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
            'trained with.'
        )


def _listing(names: list[str]) -> str:
    return f' ({first_few(names)})' if names else ''
