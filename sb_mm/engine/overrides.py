"""Overrides of a config that name nothing are errors, not silent no-ops.

MMEngine adds an unknown key to the config, where either nothing reads it
(``traincfg.max_epochs=3``) or a constructor stops with a traceback after the
data were looked at (``model.backbone.lamda_init=0.5``).
"""

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from inspect import Parameter, isclass, signature

from mmengine import registry
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from sb_mm.errors import UserInputError, first_few

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# What MMEngine takes out of a config before a constructor sees the rest.
_READ_BY_MMENGINE = {
    'type',
    '_delete_',
    '_scope_',
    'constructor',
    'convert_to_iter_based',
    'paramwise_cfg',
    'priority',
    'requires_grad',
}
_READ_BY_RUNNER = {
    'activation_checkpointing',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'strategy',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
}
# Groups without a type, by the last part of their name, and what is read of
# them besides the keys that they have.
_READ_OF_GROUPS = {
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'data_preprocessor': {
        'type',
        'mean',
        'std',
        'pad_size_divisor',
        'pad_value',
        'to_rgb',
        'to_onehot',
        'num_classes',
        'batch_augments',
    },
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'filter_cfg': {'filter_empty_gt', 'min_size'},
    'mp_cfg': {'mp_start_method', 'opencv_num_threads'},
    'randomness': {'seed', 'diff_rank_seed', 'deterministic'},
    'test_cfg': {'type', 'nms', 'fp16'},
    'train_cfg': {'type', 'by_epoch'},
}
# Arguments that are configs: what is new there must say what it configures.
_TYPED = ('attention', 'attention_conv_cfg', 'conv_cfg', 'norm_cfg', 'act_cfg')
_READ_OF_LOADERS = {'dataset', 'num_batch_per_epoch'}


def apply_overrides(cfg: Config, options: dict[str, object]) -> None:
    """Merge ``key=value`` overrides into a config.

    Args:
        cfg: Changed in place.
        options: Values by dotted keys, ``model.backbone.widen_factor``.

    Raises:
        UserInputError: If a key neither exists nor is an argument of what is
            configured there; names the closest ones.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    with DefaultScope.overwrite_default_scope(scope):
        for key in options:
            _check_key(cfg, key, options)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError) as error:
        raise UserInputError(
            f'--cfg-options {options} do not fit the config ({error}): use '
            'the names of its settings.'
        ) from error


def _check_key(cfg: Config, path: str, options: dict) -> None:
    node: object = cfg._cfg_dict
    keys = path.split('.')
    _check_variable(keys[0], node)
    for i, key in enumerate(keys):
        if isinstance(node, (list, tuple)):
            if not key.isdigit() or int(key) >= len(node):
                return  # MMEngine has a message for it
            node = node[int(key)]
        elif not isinstance(node, dict):
            return
        elif key in node:
            node = node[key]
        else:
            _check_new('.'.join(keys[:i]), key, node, options)
            _check_below('.'.join(keys[: i + 1]), keys[i + 1 :], options)
            return


def _check_variable(key: str, cfg: dict) -> None:
    """Raise for a helper of the config file, such as ``train_pipeline``.

    When the file was read, its value was copied to where it is used.
    """
    if key in cfg and key not in _read_at_the_top():
        raise UserInputError(
            f'--cfg-options {key}: this variable of the config file was used '
            'when the file was read, and nothing reads it later. Override the '
            'setting itself, such as train_dataloader.dataset.pipeline.'
        )


def _read_at_the_top() -> set[str]:
    own = set(signature(Runner.__init__).parameters) - {'self', 'cfg'}
    return own | _READ_BY_RUNNER


def _check_new(parent: str, key: str, node: dict, options: dict) -> None:
    """Raise if ``key`` would be new in ``node`` and nothing reads it."""
    name, accepted = _accepted(parent, node, options)
    if accepted is None or key in accepted:
        return
    close = get_close_matches(key, accepted, 3, 0.6)
    own = sorted(set(accepted) - _READ_BY_MMENGINE)
    hint = f'it has {first_few(own, limit=6)}'
    if close:
        hint = f'did you mean {first_few(close)}?'
    raise UserInputError(f'{name} has no setting {key!r}: {hint}')


def _check_below(name: str, below: list[str], options: dict) -> None:
    """Check what is set in a group that the config does not have yet."""
    last = name.split('.')[-1]
    if below and last in _READ_OF_GROUPS:
        _check_new(name, below[0], {}, options)
    if below and last in _TYPED and f'{name}.type' not in options:
        raise UserInputError(
            f'--cfg-options {name}.{".".join(below)}: the config has no '
            f'{name}. Use a config that has one, or give {name}.type too.'
        )


def _accepted(
    parent: str, node: dict, options: dict
) -> tuple[str, Collection[str] | None]:
    """Return what ``parent`` is, and the keys that it has, if known."""
    if not parent:
        return 'the config', _read_at_the_top()
    if parent in _LOADERS:
        own = set(signature(DataLoader.__init__).parameters) - {'self'}
        return parent, own | _READ_OF_LOADERS
    if parent == 'default_hooks':
        typed = {k.split('.')[1] for k in options if k.endswith('.type')}
        return parent, {*node, *typed}
    kind = options.get(f'{parent}.type', node.get('type'))
    group = _READ_OF_GROUPS.get(parent.split('.')[-1])
    if kind is None and group is not None:
        return parent, {*node, *group}
    cls = kind if isclass(kind) else _find_class(kind)
    return f'{parent} ({kind})', cls and arguments_of(cls)


def _find_class(name: str | None) -> type | None:
    """Look a config's ``type`` up in every registry of MMEngine."""
    scope = DefaultScope.get_current_instance().scope_name
    for root in vars(registry).values():
        if isinstance(root, Registry) and name:
            found = root.get(f'{scope}.{name}') or root.get(name)
            if isclass(found):
                return found
    return None


def check_own_arguments(cfg: Config) -> None:
    """Check what a config gives to the classes of sb_mm.

    Raises:
        UserInputError: If one of them has no such argument.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    with DefaultScope.overwrite_default_scope(scope):
        _check_own('', cfg._cfg_dict)


def _check_own(path: str, node: object) -> None:
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return
    if str(node.get('type')).startswith('sb_mm.'):
        for key in node:
            _check_new(path, key, {'type': node['type']}, {})
    for key, child in node.items():
        _check_own(f'{path}.{key}' if path else str(key), child)


def arguments_of(cls: type) -> set[str] | None:
    """Return the names that a class's constructor takes, or None if any.

    A constructor with ``**kwargs`` is taken to pass them on to its base.
    """
    names = set(_READ_BY_MMENGINE)
    for init in _constructors(cls):
        parameters = signature(init).parameters.values()
        names |= {p.name for p in parameters}
        if all(p.kind is not Parameter.VAR_KEYWORD for p in parameters):
            return names - {'self'}
    return None


def _constructors(cls: type) -> Iterator[object]:
    for base in cls.__mro__[:-1]:  # without object
        if '__init__' in vars(base):
            yield vars(base)['__init__']
