"""Options that name nothing in a config are errors, not silent no-ops.

MMEngine adds an unknown key to the config, where either nothing reads it
(``traincfg.max_epochs=3``) or a constructor stops with a traceback after the
data were looked at (``model.backbone.lamda_init=0.5``).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from inspect import Parameter, getsource, isclass, signature

from mmengine import registry
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import (
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    LogProcessor,
    Runner,
    TestLoop,
    ValLoop,
)
from torch.utils.data import DataLoader

from sb_mm.arguments import check_choice, check_number
from sb_mm.errors import UserInputError, first_few

from ..build import scope_of

# What MMEngine takes out of a config before a constructor sees the rest.
_TAKEN_OUT = {
    *('type', '_delete_', '_scope_', 'by_epoch', 'convert_to_iter_based'),
    *('constructor', 'paramwise_cfg', 'num_batch_per_epoch', 'priority'),
    'requires_grad',
}
# What MMEngine makes of settings that need no type.
_READERS: dict[str, list[Callable]] = {
    'train_dataloader': [DataLoader],
    'val_dataloader': [DataLoader],
    'test_dataloader': [DataLoader],
    'train_cfg': [EpochBasedTrainLoop, IterBasedTrainLoop],
    'val_cfg': [ValLoop],
    'test_cfg': [TestLoop],
    'optim_wrapper': [OptimWrapper],
    'log_processor': [LogProcessor],
    'randomness': [Runner.set_randomness],
}
# What it reads of others, such as auto_scale_lr.get('enable').
_WORDS = set(re.findall(r"'(\w+)'", getsource(Runner)))
# The least that whole numbers can be.
_LEAST = {
    **{
        f'train_cfg.{key}': 1
        for key in ('max_epochs', 'max_iters', 'val_interval')
    },
    'train_cfg.val_begin': 0,
    'optim_wrapper.accumulative_counts': 1,
    'default_hooks.logger.interval': 1,
    'default_hooks.checkpoint.max_keep_ckpts': -1,
    'randomness.seed': 0,
}
_LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')
# Arguments that are configs: what is new there must say what it configures.
_TYPED = ('attention', 'attention_conv_cfg', 'conv_cfg', 'norm_cfg', 'act_cfg')


def apply_options(cfg: Config, options: dict[str, object]) -> None:
    """Merge ``key=value`` options into a config.

    Args:
        cfg: Changed in place.
        options: Values by dotted keys, ``model.backbone.widen_factor``.

    Raises:
        UserInputError: If a key neither exists nor is an argument of what is
            configured there; names the closest ones.
    """
    with scope_of(cfg):
        for key in options:
            _check_key(cfg, key, options)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError) as error:
        raise UserInputError(
            f'--cfg-options {options} do not fit the config ({error}): use '
            'the names of its settings.'
        ) from error


def check_own_arguments(cfg: Config) -> None:
    """Check what a config gives to the classes of sb_mm.

    Raises:
        UserInputError: If one of them has no such argument.
    """
    with scope_of(cfg):
        for path, node in nodes(cfg._cfg_dict):
            if str(node.get('type')).startswith('sb_mm.'):
                for key in node:
                    _check_new(path, key, dict(type=node['type']), {})


def check_values(cfg: Config, loaders: Sequence[str]) -> None:
    """Check values at which MMEngine stops only when it builds its parts.

    Args:
        cfg: A whole config.
        loaders: Names of the dataloaders that are used.

    Raises:
        UserInputError: If a hook is unknown, or a number is not possible.
    """
    _check_hooks(cfg)
    least = dict(_LEAST)
    for name in loaders:
        least |= {f'{name}.batch_size': 1, f'{name}.num_workers': 0}
    for path, low in least.items():
        if (value := _value(cfg, path)) is not None:
            check_number(path, value, low, integer=True)
    if (lr := _value(cfg, 'optim_wrapper.optimizer.lr')) is not None:
        check_number('optim_wrapper.optimizer.lr', lr, 0)
    level = cfg.get('log_level') or 'INFO'
    if not isinstance(level, int):
        check_choice('log_level', level, _LEVELS)
    for name in loaders:
        loader = cfg.get(name) or {}
        for key in ('prefetch_factor', 'persistent_workers'):
            if loader.get(key) and not loader.get('num_workers'):
                raise UserInputError(
                    f'{name}.{key}={loader[key]} needs dataloader workers: '
                    f'set {name}.{key}=None, or num_workers above 0.'
                )


def _value(cfg: Config, path: str) -> object:
    """Return what a config has at a dotted path, or None."""
    node: object = cfg._cfg_dict
    for key in path.split('.'):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _check_hooks(cfg: Config) -> None:
    custom = cfg.get('custom_hooks') or []
    if not isinstance(custom, (list, tuple)):
        raise UserInputError(
            f'custom_hooks is {custom}, but must be a list of hooks, such as '
            "[dict(type='EMAHook')]."
        )
    default = cfg.get('default_hooks') or {}
    for hook in (*custom, *default.values()):
        if isinstance(hook, str):
            raise UserInputError(
                f"The hook {hook!r} must be written dict(type='{hook}')."
            )
        kind = hook.get('type') if isinstance(hook, dict) else hook
        with scope_of(cfg):
            cls = _find_class(kind)
        known = cls and issubclass(cls, Hook)
        if not known and not isinstance(hook, Hook | None):
            raise UserInputError(
                f'The hook {kind} is unknown: correct the type, or name the '
                'module that defines it in custom_imports.'
            )


def nodes(node: object, path: str = '') -> Iterator[tuple[str, dict]]:
    """Yield every dict of a config and its dotted path."""
    if isinstance(node, dict):
        yield path, node
    elif isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    else:
        return
    for key, child in node.items():
        yield from nodes(child, f'{path}.{key}' if path else str(key))


def _check_key(cfg: Config, path: str, options: dict) -> None:
    node: object = cfg._cfg_dict
    keys = path.split('.')
    _check_top(cfg, keys[0])
    for i, key in enumerate(keys):
        name = '.'.join(keys[:i])
        if isinstance(node, (list, tuple)) and key.isdigit():
            node = node[int(key)] if int(key) < len(node) else None
        elif not isinstance(node, dict):
            return  # MMEngine has a message for it
        elif key in node:
            node = node[key]
        else:
            if name:
                _check_new(name, key, node, options)
            node = {}


def _check_top(cfg: Config, key: str) -> None:
    """Raise if MMEngine's runner does not read a key of the top level."""
    kind = _find_class(cfg.get('runner_type')) or Runner
    read = {'runner_type', *signature(kind.__init__).parameters}
    # It takes many of them from its config, such as cfg.get('sync_bn').
    read |= set(re.findall(r"cfg\.get\(\s*'(\w+)'", getsource(kind)))
    if key in read:
        return
    parts = list(nodes(cfg._cfg_dict))
    if key in cfg:
        value = cfg._cfg_dict[key]
        copies = [
            f'{path}.{k}'
            for path, node in parts
            for k, v in node.items()
            if path.split('.')[0] in read and v == value
        ]
        instead = f'set {first_few(copies)}' if copies else 'change the file'
        raise UserInputError(
            f'--cfg-options {key}: this variable was used when the config '
            f'file was read, and nothing reads it later; {instead}.'
        )
    # Written without its path, or misspelt.
    deeper = [f'{path}.{key}' for path, node in parts if key in node]
    if key == 'classes':
        deeper = ['metainfo.classes of the dataset of every loader']
    _refuse('the config', key, read, deeper)


def _check_new(name: str, key: str, node: dict, options: dict) -> None:
    """Raise if ``key`` would be new in ``node`` and nothing reads it."""
    kind = options.get(f'{name}.type', node.get('type'))
    label = f'{name} ({kind})' if kind else name
    if not kind and name.split('.')[-1] in _TYPED:
        raise UserInputError(
            f'--cfg-options {name}.{key}: the config has no {name}. Use a '
            f'config that has one, or give {name}.type too.'
        )
    accepted = _accepted(name, kind, options)
    if accepted is not None and key not in accepted:
        _refuse(label, key, {*accepted, *node})
    # Whatever is without a type, anybody may read: only a slip is certain.
    read = set(node) if '.' in name else {*node, *_WORDS}
    close = get_close_matches(key, read, 3, 0.84)
    if not kind and accepted is None and close and key not in read:
        _refuse(label, key, read, close)


def _accepted(name: str, kind: object, options: dict) -> set[str] | None:
    """Return the keys that a part of a config can have, if known."""
    if name == 'default_hooks':
        return {k.split('.')[1] for k in options if k.endswith('.type')}
    readers = [_find_class(kind)] if kind else _READERS.get(name, [])
    known = [arguments_of(reader) for reader in readers if reader]
    return set().union(*known) if known and None not in known else None


def _refuse(
    label: str, key: str, accepted: set[str], close: list[str] | None = None
) -> None:
    close = close or get_close_matches(key, accepted, 3, 0.6)
    own = sorted(accepted - _TAKEN_OUT)
    hint = f'it has {first_few(own, limit=6)}'
    if close:
        hint = f'did you mean {first_few(close)}?'
    raise UserInputError(f'{label} has no setting {key!r}: {hint}')


def _find_class(name: object) -> type | None:
    """Look a config's ``type`` up in every registry of MMEngine."""
    if isclass(name):
        return name
    scope = DefaultScope.get_current_instance().scope_name
    for root in vars(registry).values():
        if isinstance(root, Registry) and isinstance(name, str):
            found = root.get(f'{scope}.{name}') or root.get(name)
            if isclass(found):
                return found
    return None


def arguments_of(reader: Callable) -> set[str] | None:
    """Return the names that a class or a function takes, or None if any.

    A constructor with ``**kwargs`` is taken to pass them on to its base.
    """
    functions = [reader]
    if isclass(reader):
        own = [vars(base) for base in reader.__mro__[:-1]]  # without object
        functions = [base['__init__'] for base in own if '__init__' in base]
        if issubclass(reader, CheckpointHook):
            functions.append(Runner.save_checkpoint)  # gets the rest
    names = set(_TAKEN_OUT)
    for function in functions:
        parameters = signature(function).parameters.values()
        names |= {p.name for p in parameters}
        if all(p.kind is not Parameter.VAR_KEYWORD for p in parameters):
            return names - {'self'}
    return None
