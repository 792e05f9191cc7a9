"""Fold a trained network for inference."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from mmcv.cnn import Conv2d as ConvOfEmpty
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from sb_mm.errors import UserInputError

from ..models.layers import (
    AttentionConvModule,
    ChannelGate,
    DynamicConv2d,
    NoAttention,
    ShiftBalance,
)
from .folded_layers import Folded, FoldedGate, ShiftedConv2d

# Not their subclasses, which may do more with the weight than convolve.
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, ConvOfEmpty)


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Fold batch normalisation and shifts into convolutions, in place.

    The outputs stay what they are, up to rounding. Folded are a batch
    normalisation behind a convolution in mmcv's ``ConvModule`` and in
    :class:`AttentionConvModule`, behind a convolution or Linear layer in an
    ``nn.Sequential``, and in the gate of an attention; behind a
    :class:`DynamicConv2d`, it goes into all of its kernels. The shift of a
    :class:`ShiftBalance` before the activation becomes a part of the
    convolution's bias. Dropout is taken out.

    Args:
        model: Any network in evaluation mode: a backbone, a classifier, a
            detector.

    Returns:
        The same network. The names in its ``state_dict`` are others than
        before, so that weights are to be loaded first; and ``train()``
        raises, since what is left of a norm is a constant.

    Raises:
        UserInputError: If it is in training mode, or was folded before, or
            there is nothing to fold.

    Note:
        Other norms stay, and so does a batch normalisation between a
        :class:`SqueezeExcite` and the activation (``attention_after='conv'``).
    """
    _check_mode(model)
    folded = [step(m) for step in _STEPS for m in list(model.modules())]
    if not any(folded):
        raise UserInputError(_nothing_to_fold(model))
    model.folded = True
    # What was put in is new, and so in training mode.
    return model.eval()


def _check_mode(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if module.training:
            part = f' (its {name} is)' if name else ''
            raise UserInputError(
                f'{type(model).__name__} is in training mode{part}: call '
                'eval() before fold().'
            )


def _nothing_to_fold(model: nn.Module) -> str:
    name = type(model).__name__
    if any(getattr(m, 'folded', False) for m in model.modules()):
        return f'{name} is folded already: fold a network once.'
    return (
        f'{name} has nothing to fold, neither batch normalisation behind a '
        'convolution nor attention: use it as it is.'
    )


def _fold_gates(module: nn.Module) -> bool:
    return _replace(module, ChannelGate, FoldedGate)


def _drop_dropout(module: nn.Module) -> bool:
    return _replace(module, _DropoutNd, lambda _: Folded())


def _replace(
    module: nn.Module,
    old: type[nn.Module],
    new: Callable[[nn.Module], nn.Module],
) -> bool:
    """Replace the children of a type; tell whether there were any."""
    found = {n: c for n, c in module.named_children() if isinstance(c, old)}
    for name, child in found.items():
        setattr(module, name, new(child))
    return bool(found)


def _fold_sequence(module: nn.Module) -> bool:
    """Fold norms that directly follow in an ``nn.Sequential``."""
    if not isinstance(module, nn.Sequential):
        return False
    pairs = list(_foldable_pairs(module))
    for first, norm in pairs:
        setattr(
            module,
            first,
            _merged(getattr(module, first), getattr(module, norm)),
        )
        setattr(module, norm, Folded())
    return bool(pairs)


def _foldable_pairs(sequence: nn.Sequential) -> Iterator[tuple[str, str]]:
    """Yield the names of a layer and the norm directly behind it."""
    children = list(sequence.named_children())
    for (name, child), (norm_name, norm) in pairwise(children):
        if _folds(child, norm):
            yield name, norm_name


def _folds(layer: nn.Module, norm: nn.Module | None) -> bool:
    """Tell whether a norm is a fixed scale and offset, and folds."""
    fixed = isinstance(norm, _BatchNorm) and norm.affine
    fixed = fixed and norm.track_running_stats
    linear = (*_CONVS, nn.Linear, DynamicConv2d)
    return fixed and type(layer) in linear


def _merged(layer: nn.Module, norm: _BatchNorm) -> nn.Module:
    if isinstance(layer, DynamicConv2d):
        return _merge_dynamic(layer, norm)
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    return fuse_conv_bn_eval(layer, norm)


def _merge_dynamic(conv: DynamicConv2d, norm: _BatchNorm) -> DynamicConv2d:
    # Every kernel alike: the shares sum to 1, so the offset stays whole.
    scale = _scale(norm)
    offset = norm.bias - norm.running_mean * scale
    scale, offset = (t.repeat(conv.num_kernels) for t in (scale, offset))
    before = 0 if conv.bias is None else conv.bias
    conv.bias = nn.Parameter(before * scale + offset)
    conv.weight *= scale[:, None, None, None]
    return conv


def _scale(norm: _BatchNorm) -> Tensor:
    return norm.weight * torch.rsqrt(norm.running_var + norm.eps)


def _fold_conv_module(module: nn.Module) -> bool:
    """Fold the norm of a ``ConvModule``, if it follows the convolution."""
    if not isinstance(module, ConvModule) or module.with_spectral_norm:
        return False
    if not _norm_follows(module) or not _folds(module.conv, module.norm):
        return False
    if _steps(module)[0] == 'attention':
        module.attention.lambda_ *= _scale(module.norm)
    module.conv = _merged(module.conv, module.norm)
    setattr(module, module.norm_name, Folded())
    # What the forward of the module asks.
    module.with_norm = False
    if isinstance(module, AttentionConvModule):
        module.steps.remove('norm')
    return True


def _norm_follows(module: ConvModule) -> bool:
    """Tell whether nothing but a shift is between convolution and norm."""
    if not module.with_norm:
        return False
    steps = _steps(module)
    shifted = steps[0] == 'attention' and (
        type(module.attention) is ShiftBalance
    )
    return steps[shifted] == 'norm'


def _steps(module: ConvModule) -> list[str]:
    """Return what follows the convolution."""
    if isinstance(module, AttentionConvModule):
        return module.steps
    order = module.order
    return [*order[order.index('conv') + 1 :], '']


def _move_shift(module: nn.Module) -> bool:
    """Make the shift a part of the convolution that it follows."""
    if not isinstance(module, AttentionConvModule):
        return False
    if module.steps[:1] != ['attention'] or module.with_explicit_padding:
        return False
    plain = isinstance(module.conv, nn.Conv2d) and type(module.conv) in _CONVS
    if not plain or type(module.attention) is not ShiftBalance:
        return False
    module.conv = ShiftedConv2d(module.conv, module.attention)
    module.attention = NoAttention()
    module.steps.remove('attention')
    return True


_STEPS = (
    _fold_gates,
    _drop_dropout,
    _fold_sequence,
    _fold_conv_module,
    _move_shift,
)
