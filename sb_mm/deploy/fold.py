"""Fold a trained network for inference."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from mmcv.cnn import Conv2d as ConvOfEmpty
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.fusion import (
    fuse_conv_bn_eval,
    fuse_conv_bn_weights,
    fuse_linear_bn_eval,
)

from sb_mm.errors import UserInputError

from ..models.layers import (
    AttentionConvModule,
    ChannelGate,
    DynamicConv2d,
    NoAttention,
    ShiftBalance,
)

# Not their subclasses, which may do more with the weight than convolve.
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, ConvOfEmpty)


class Folded(nn.Identity):
    """Stands where a norm or dropout was: what is folded does not train."""

    def train(self, mode: bool = True) -> nn.Module:
        """Stay in evaluation mode; raise UserInputError if it is to train."""
        if mode:
            raise UserInputError(
                'This network is folded, and its norms are constants: train '
                'one that is not folded.'
            )
        return super().train(mode)


class FoldedGate(Folded):
    """A :class:`~sb_mm.models.layers.ChannelGate` without its norms."""

    def __init__(self, gate: ChannelGate) -> None:
        super().__init__()
        self.fc1 = _with_norm(gate.fc1, gate.bn1)
        self.fc2 = _with_norm(gate.fc2, gate.bn2)
        self.fc2.bias += gate.offset

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape ``(N, Cin, H, W)`` to logits ``(N, Cout)``."""
        return self.fc2(F.relu(self.fc1(x.mean((2, 3)))))


def _with_norm(linear: nn.Linear, norm: nn.Module) -> nn.Linear:
    absent = isinstance(norm, nn.Identity)
    return linear if absent else fuse_linear_bn_eval(linear, norm)


class ShiftedConv2d(nn.Module):
    r"""A convolution whose bias is shifted by what the attention says.

    .. math:: y = W * x + b + \lambda \cdot \tanh(F(x))

    A batch of one gets the shift inside of the convolution, at no cost over
    the output's pixels; in a larger batch the samples' biases differ.
    """

    def __init__(self, conv: nn.Conv2d, attention: ShiftBalance) -> None:
        super().__init__()
        if conv.bias is None:
            conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
        self.conv = conv
        self.gate = attention.gate
        self.gate_function = attention.gate_function
        self.lambda_ = attention.lambda_

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape ``(N, Cin, H, W)``."""
        gates = self.gate_function(self.gate(x))
        if x.size(0) == 1:
            conv = self.conv
            bias = torch.addcmul(conv.bias, self.lambda_, gates[0])
            return conv._conv_forward(x, conv.weight, bias)
        return self.conv(x).add_((self.lambda_ * gates)[:, :, None, None])


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Fold batch normalisation and shifts into convolutions, in place.

    The network, which is returned too, gives what it gave, up to rounding;
    its ``state_dict`` gets other names, and its ``train()`` raises. Batch
    normalisation goes into the convolution or Linear layer before it, and the
    shift of a :class:`ShiftBalance` before the activation into the
    convolution's bias; dropout is taken out. What stands elsewhere stays,
    such as a norm behind :class:`SqueezeExcite` (``attention_after='conv'``).

    Raises:
        UserInputError: If it is in training mode, or nothing is to fold.
    """
    kind = type(model).__name__
    for name, module in model.named_modules():
        if module.training:
            part = f' (its {name} is)' if name else ''
            raise UserInputError(
                f'{kind} is in training mode{part}: call eval() before fold().'
            )
    steps = _fold_children, _fold_sequence, _fold_conv_module, _move_shift
    folded = [step(m) for step in steps for m in list(model.modules())]
    if not any(folded):
        raise UserInputError(
            f'{kind} has nothing to fold, neither batch normalisation behind '
            'a convolution nor attention, or is folded already: use it as it '
            'is.'
        )
    # What was put in is new, and so in training mode.
    return model.eval()


def _fold_children(module: nn.Module) -> bool:
    """Fold gates, take dropout out; tell whether there was any."""
    kinds = ChannelGate, _DropoutNd
    found = [c for c in module.named_children() if isinstance(c[1], kinds)]
    for name, child in found:
        is_gate = isinstance(child, ChannelGate)
        setattr(module, name, FoldedGate(child) if is_gate else Folded())
    return bool(found)


def _fold_sequence(module: nn.Module) -> bool:
    """Fold norms that directly follow in an ``nn.Sequential``."""
    if not isinstance(module, nn.Sequential):
        return False
    pairs = pairwise(module.named_children())
    found = [(a, b) for a, b in pairs if _folds(a[1], b[1])]
    for (name, layer), (norm_name, norm) in found:
        setattr(module, name, _merged(layer, norm))
        setattr(module, norm_name, Folded())
    return bool(found)


def _folds(layer: nn.Module, norm: nn.Module | None) -> bool:
    """Tell whether a norm is a fixed scale and offset of a plain layer."""
    return (
        isinstance(norm, _BatchNorm)
        and norm.affine
        and norm.track_running_stats
        and type(layer) in (*_CONVS, nn.Linear, DynamicConv2d)
        # Spectral norm computes the weight before each forward pass.
        and not layer._forward_pre_hooks
    )


def _merged(layer: nn.Module, norm: _BatchNorm) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    if not isinstance(layer, DynamicConv2d):
        return fuse_conv_bn_eval(layer, norm)
    # Every kernel alike: the shares sum to 1, so the offset stays whole.
    mean, var, weight, bias = (
        t.repeat(layer.num_kernels)
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    layer.weight, layer.bias = fuse_conv_bn_weights(
        layer.weight, layer.bias, mean, var, norm.eps, weight, bias
    )
    return layer


def _fold_conv_module(module: nn.Module) -> bool:
    """Fold the norm of a ``ConvModule``, if it follows the convolution."""
    if not isinstance(module, ConvModule):
        return False
    own = isinstance(module, AttentionConvModule)
    order = ('conv', *module.steps) if own else module.order
    steps = order[order.index('conv') + 1 :]
    # A shift between the two is scaled as the convolution is.
    shifted = _shifts_first(module)
    follows = steps[shifted : shifted + 1] == ('norm',)
    if not follows or not _folds(module.conv, module.norm):
        return False
    if shifted:
        spread = torch.sqrt(module.norm.running_var + module.norm.eps)
        module.attention.lambda_ *= module.norm.weight / spread
    module.conv = _merged(module.conv, module.norm)
    setattr(module, module.norm_name, Folded())
    # What the forward of the module asks.
    module.with_norm = False
    if own:
        module.steps.remove('norm')
    return True


def _shifts_first(module: nn.Module) -> bool:
    """Tell whether a shift directly follows a convolution."""
    return (
        isinstance(module, AttentionConvModule)
        and module.steps[:1] == ['attention']
        and type(module.attention) is ShiftBalance
    )


def _move_shift(module: nn.Module) -> bool:
    """Make the shift a part of the convolution that it follows."""
    if not _shifts_first(module) or module.with_explicit_padding:
        return False
    if type(module.conv) not in (nn.Conv2d, ConvOfEmpty):
        return False
    module.conv = ShiftedConv2d(module.conv, module.attention)
    module.attention = NoAttention()
    module.steps.remove('attention')
    return True
