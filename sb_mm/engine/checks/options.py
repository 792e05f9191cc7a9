"""Options that name nothing in a config are errors, not silent no-ops.

MMEngine adds an unknown key to the config, where either nothing reads it
(``traincfg.max_epochs=3``) or a constructor stops with a traceback.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from inspect import Parameter, getsource, isclass, signature

from mmengine import registry
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from sb_mm.arguments import check_choice, check_number
from sb_mm.errors import UserInputError, explain, first_few, shorten

from ..build import scope_of

# What MMEngine takes out of a config before a constructor sees the rest.
_TAKEN_OUT = {
    *('type', '_scope_', 'by_epoch', 'convert_to_iter_based', 'constructor'),
    *('paramwise_cfg', 'num_batch_per_epoch', 'priority', 'requires_grad'),
    'override',
}
# What MMEngine makes of settings without a type.
_DEFAULTS = {
    'train_dataloader': DataLoader,
    'val_dataloader': DataLoader,
    'test_dataloader': DataLoader,
    'train_cfg': 'EpochBasedTrainLoop',
    'val_cfg': 'ValLoop',
    'test_cfg': 'TestLoop',
    'optim_wrapper': 'OptimWrapper',
    'log_processor': 'LogProcessor',
    'randomness': Runner.set_randomness,
}
# The least that numbers can be; whole ones, but for the last.
_LEAST = {
    'train_cfg.max_epochs': 1,
    'train_cfg.max_iters': 1,
    'train_cfg.val_interval': 1,
    'train_cfg.val_begin': 0,
    'optim_wrapper.accumulative_counts': 1,
    'default_hooks.logger.interval': 1,
    'default_hooks.checkpoint.max_keep_ckpts': -1,
    'randomness.seed': 0,
    'optim_wrapper.optimizer.lr': 0,
}
_LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')
# Arguments that are configs: what is new there must say what it configures.
_TYPED = ('attention', 'attention_conv_cfg', 'conv_cfg', 'norm_cfg', 'act_cfg')


def apply_options(cfg: Config, options: Mapping[str, object]) -> None:
    """Merge ``key=value`` options into a config, in place.

    Raises:
        UserInputError: If nothing reads a key that is new or of one of
            sb_mm's classes; names the closest ones.
    """
    before = _settings(cfg)
    with scope_of(cfg):
        for path in options:
            _check_top(cfg, path.split('.')[0])
        fault = f'--cfg-options {options} do not fit the config'
        with explain(fault, 'use the names of its settings'):
            cfg.merge_from_dict(options)
        for path, node in nodes(cfg._cfg_dict):
            old = {key for key in node if f'{path}.{key}' in before}
            own = str(node.get('type')).startswith('sb_mm.')
            new = [key for key in node if own or key not in old]
            if path and new:
                _check_keys(path, node, new, old)


def check_values(cfg: Config, loaders: Sequence[str]) -> None:
    """Raise UserInputError at hooks and numbers that MMEngine cannot build."""
    _check_hooks(cfg)
    values, least = _settings(cfg), dict(_LEAST)
    for name in loaders:
        least |= {f'{name}.batch_size': 1, f'{name}.num_workers': 0}
        for key in ('prefetch_factor', 'persistent_workers'):
            value = values.get(f'{name}.{key}')
            if value and not values.get(f'{name}.num_workers'):
                raise UserInputError(
                    f'{name}.{key}={value} needs dataloader workers: '
                    f'set {name}.{key}=None, or num_workers above 0.'
                )
    for path, low in least.items():
        if (value := values.get(path)) is not None:
            check_number(path, value, low, integer=path[-3:] != '.lr')
    level = cfg.get('log_level') or 'INFO'
    if not isinstance(level, int):
        check_choice('log_level', level, _LEVELS)


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


def find_class(name: object) -> type | None:
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


def _settings(cfg: Config) -> dict[str, object]:
    parts = nodes(cfg._cfg_dict)
    return {f'{path}.{k}': v for path, node in parts for k, v in node.items()}


def _check_hooks(cfg: Config) -> None:
    custom = cfg.get('custom_hooks') or []
    listed = isinstance(custom, (list, tuple))
    default = (cfg.get('default_hooks') or {}).values()
    for hook in (*(custom if listed else [custom]), *default):
        kind = hook.get('type') if isinstance(hook, dict) else None
        with scope_of(cfg):
            cls = find_class(kind) or type(hook)
        if not listed or not (hook is None or issubclass(cls, Hook)):
            raise UserInputError(
                f'{shorten(str(hook))} is no hook: write custom_hooks as '
                "[dict(type='EMAHook')], and name the module that defines "
                'the type in custom_imports.'
            )


def _check_top(cfg: Config, key: str) -> None:
    kind = find_class(cfg.get('runner_type')) or Runner
    read = {'runner_type', *signature(kind.__init__).parameters}
    # It takes some of them from its config, such as self.cfg.get('sync_bn').
    read |= set(re.findall(r"self\.cfg\.get\(\s*'(\w+)'", getsource(kind)))
    if key in read:
        return
    # Written without its path, or a variable that the file made use of.
    places = [
        path
        for path, value in _settings(cfg).items()
        if path.split('.')[0] in read
        and (path.split('.')[-1] == key or key in cfg and value == cfg[key])
    ]
    if key in cfg:
        instead = f'set {first_few(places)}' if places else 'change the file'
        raise UserInputError(
            f'--cfg-options {key}: this variable was used when the config '
            f'file was read, and nothing reads it later; {instead}.'
        )
    if key == 'classes':
        places = ['metainfo.classes of the dataset of every loader']
    _refuse('the config', key, read, places)


def _check_keys(path: str, node: dict, new: list[str], old: set[str]) -> None:
    kind = node.get('type')
    if not kind and path.split('.')[-1] in _TYPED:
        raise UserInputError(
            f'--cfg-options {path}.{new[0]}: the config has no {path}. Use a '
            f'config that has one, or give {path}.type too.'
        )
    by_iter = path == 'train_cfg' and not node.get('by_epoch', True)
    default = 'IterBasedTrainLoop' if by_iter else _DEFAULTS.get(path)
    reader = find_class(kind) if kind else find_class(default) or default
    accepted = arguments_of(reader) if reader else None
    if accepted and re.search(r'\.override(\.\d+)?$', path):
        accepted.add('name')  # of the layer, in an init_cfg
    for key in new:
        others = old - {key}
        if accepted is None:
            # Without a type, anybody may read it: only a slip is certain.
            slips = [] if kind else get_close_matches(key, others, 3, 0.84)
            if slips:
                _refuse(path, key, others, slips)
        elif key not in accepted:
            label = f'{path} ({kind})' if kind else path
            _refuse(label, key, accepted | others)


def _refuse(
    label: str, key: str, accepted: set[str], close: list[str] | None = None
) -> None:
    close = close or get_close_matches(key, accepted, 3, 0.6)
    own = sorted(accepted - _TAKEN_OUT)
    hint = f'it has {first_few(own, limit=6)}'
    if close:
        hint = f'did you mean {first_few(close)}?'
    raise UserInputError(f'{label} has no setting {key!r}: {hint}')


def arguments_of(reader: Callable) -> set[str] | None:
    """Return the names that a class or a function takes, or None if any."""
    functions = [reader]
    if isclass(reader):
        # One with **kwargs is taken to pass them on to its base.
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
