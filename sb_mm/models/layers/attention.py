"""Squeeze-and-Excite, Shift-and-Balance, and the gate that they share."""

import math
import os
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from sb_mm.arguments import check_choice, check_number
from sb_mm.registry import MODELS

from .norm import GateBatchNorm1d, GateSyncBatchNorm

try:
    from . import fused_gate
except ImportError:  # a CPU wheel of torch has no Triton
    fused_gate = None


class _Mean(torch.autograd.Function):
    """The mean over the pixels, whose gradient is a view of ``(N, C)``.

    That of ``x.mean`` is written to every pixel, and not in channels_last.
    """

    @staticmethod
    def forward(ctx, x, dtype):  # noqa: ANN001, ANN205
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return x.mean((2, 3), dtype=dtype)

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205
        gradient = (gradient / ctx.shape[2:].numel()).to(ctx.dtype)
        return gradient[:, :, None, None].expand(ctx.shape), None


class ChannelGate(nn.Module):
    r"""Channel logits from the globally pooled input of a layer.

    .. math:: F(x) = BN(W_2\, \delta(BN(W_1\, GAP(x))))

    with :math:`\delta` = ReLU, ``fc1`` = :math:`W_1`, ``fc2`` = :math:`W_2`
    (Eq. 2 and 7 of arXiv:2103.13080). The attention that owns the gate applies
    the gating function.

    Args:
        in_channels: Channels of the pooled input.
        hidden_channels: Hidden units.
        out_channels: Number of logits.
        dropout: Probability of dropping a hidden unit (Table 7).
        bias: Whether the two Linear layers have a bias.
        norm: Whether there is the batch normalisation of the paper; without
            it, the Linear layers always have a bias.
        offset: Added to the logits.

    Note:
        Computes in the type of its parameters, also under autocast:
        ``(N, C)`` tensors are too little work to lose precision for.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        dropout: float = 0.0,
        bias: bool = False,
        norm: bool = True,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        bias = bias or not norm
        self.fc1 = nn.Linear(in_channels, hidden_channels, bias=bias)
        self.bn1 = GateBatchNorm1d(hidden_channels) if norm else nn.Identity()
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc2 = nn.Linear(hidden_channels, out_channels, bias=bias)
        self.bn2 = GateBatchNorm1d(out_channels) if norm else nn.Identity()
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape ``(N, Cin, H, W)`` to logits ``(N, Cout)``."""
        with torch.autocast(x.device.type, enabled=False):
            hidden = self.relu(self.bn1(self.fc1(self._pool(x))))
            logits = self.bn2(self.fc2(self.dropout(hidden)))
        return logits + self.offset if self.offset else logits

    def _pool(self, x: Tensor) -> Tensor:
        # The weight of a quantised layer is a method.
        dtype = getattr(self.fc1.weight, 'dtype', x.dtype)
        if self.training:  # TorchScript saves no Function
            return _Mean.apply(x, dtype)
        return x.mean((2, 3), dtype=dtype)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a part; an ``nn.SyncBatchNorm`` becomes one of a gate."""
        # Both PyTorch's and MMEngine's convert_sync_batchnorm come this way.
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = GateSyncBatchNorm
        super().add_module(name, module)


class ChannelAttention(nn.Module):
    """Base of the attentions that act on a layer's output channel by channel.

    The gate has ``out_channels`` hidden units, or
    ``out_channels // depthwise_reduction`` behind a depthwise convolution,
    times ``hidden_multiplier`` (Table 10 of arXiv:2103.13080). A subclass sets
    ``gate_function``, which maps the gate's logits to what is applied.

    Args:
        in_channels: Channels of the layer's input.
        out_channels: Channels of the layer's output.
        depthwise: Whether the layer is a depthwise convolution.
        depthwise_reduction: What the hidden units of a depthwise layer are
            divided by.
        hidden_multiplier: Factor on the hidden units.
        dropout, gate_norm, gate_offset: See :class:`ChannelGate`.
        fused: Compute in seven Triton kernels, forward and backward, where
            :func:`.fused_gate.applies`: in training on a GPU. None for
            whether the environment variable ``SB_MM_FUSED_GATE`` is ``1``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    gate_function: Callable[[Tensor], Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        depthwise: bool = False,
        depthwise_reduction: int = 6,
        hidden_multiplier: float = 1,
        dropout: float = 0.0,
        gate_norm: bool = True,
        gate_offset: float = 0.0,
        fused: bool | None = None,
    ) -> None:
        super().__init__()
        check_number('in_channels', in_channels, 1, integer=True)
        check_number('out_channels', out_channels, 1, integer=True)
        check_number(
            'depthwise_reduction', depthwise_reduction, 1, integer=True
        )
        check_number('hidden_multiplier', hidden_multiplier, 0, open_low=True)
        check_number('dropout', dropout, 0, 1, open_high=True)
        check_number('gate_offset', gate_offset, -math.inf)
        check_choice('fused', fused, (None, True, False))
        self.fused = _fuses(fused)
        reduction = depthwise_reduction if depthwise else 1
        self.gate = ChannelGate(
            in_channels,
            max(1, int(out_channels // reduction * hidden_multiplier)),
            out_channels,
            dropout,
            norm=gate_norm,
            offset=gate_offset,
        )

    def forward(
        self, trunk: Tensor, x: Tensor, activation: nn.Module | None = None
    ) -> Tensor:
        """Return ``trunk`` changed as ``x`` demands.

        Args:
            trunk: Output of the layer, ``(N, Cout, H', W')``.
            x: Input of the layer, ``(N, Cin, H, W)``.
            activation: Applied to the result, in the same pass over the
                pixels where the attention is fused.
        """
        if self.fused and fused_gate.applies(self, trunk, x):
            return fused_gate.attend(self, trunk, x, activation)
        y = self._combine(trunk, self.gate_function(self.gate(x)))
        return y if activation is None else activation(y)

    def _combine(self, trunk: Tensor, gates: Tensor) -> Tensor:
        """Apply gates ``(N, Cout)``, in the trunk's type."""
        raise NotImplementedError


@MODELS.register_module()
class SqueezeExcite(ChannelAttention):
    r"""Scale each channel of a layer's output by a gate in (0, 1).

    .. math:: y = T(x) \cdot \mathrm{sigmoid}(F(x))

    Eq. 1-2 of *Shift-and-Balance Attention* (arXiv:2103.13080), after
    *Squeeze-and-Excitation Networks* (arXiv:1709.01507); :math:`F` is
    ``gate``. At the output of a block, pass the block's output as both
    arguments. See :class:`ChannelAttention` for the arguments; a
    ``gate_offset`` of 0 lets the gates start around 1/2, as in the papers, 4
    around 0.98, which is almost the network without attention.

    Note:
        Unlike the original, the gate has batch normalisation and, in
        pointwise layers, no bottleneck: the parameter counts of the paper
        hold for this form only.
    """

    gate_function = staticmethod(torch.sigmoid)

    def _combine(self, trunk: Tensor, gates: Tensor) -> Tensor:
        return trunk * gates.to(trunk.dtype)[:, :, None, None]


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    'tanh': torch.tanh,
    'sigmoid': torch.sigmoid,
    'softmax': partial(torch.softmax, dim=1),
    'relu': torch.relu,
    'none': torch.positive,
}


@MODELS.register_module()
class ShiftBalance(ChannelAttention):
    r"""Shift each channel of a layer's output by a learned, gated amount.

    .. math:: y = T(x) + \lambda \cdot \tanh(F(x))

    Eq. 6-7 of *Shift-and-Balance Attention* (arXiv:2103.13080):
    :math:`F` is ``gate``, :math:`\lambda` is ``lambda_``, learned per channel.
    The shift lies in :math:`[-\lambda, \lambda]` and balances against the
    trunk instead of scaling it.

    Args:
        in_channels, out_channels, **kwargs: See :class:`ChannelAttention`.
        lambda_init: Start value of lambda (Table 8).
        gate: Gating function (Table 9): ``'tanh'``, ``'sigmoid'``,
            ``'softmax'`` (over the channels), ``'relu'`` or ``'none'``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        lambda_init: float = 0.1,  # Sec. 4.2
        gate: str = 'tanh',
        **kwargs,
    ) -> None:
        check_number('lambda_init', lambda_init, 0)
        check_choice('gate', gate, GATES)
        super().__init__(in_channels, out_channels, **kwargs)
        start = torch.full((out_channels,), float(lambda_init))
        self.lambda_ = nn.Parameter(start)
        self.gate_function = GATES[gate]

    def _combine(self, trunk: Tensor, gates: Tensor) -> Tensor:
        if self.training:
            return _Shift.apply(trunk, gates, self.lambda_)
        shift = self.lambda_ * gates
        return trunk + shift.to(trunk.dtype)[:, :, None, None]


class _Shift(torch.autograd.Function):
    """``trunk + scale * gates`` in four calls on the device, not in six."""

    @staticmethod
    def forward(ctx, trunk, gates, scale):  # noqa: ANN001, ANN205
        ctx.save_for_backward(gates, scale)
        gates, scale = gates.to(trunk.dtype), scale.to(trunk.dtype)
        return trunk.addcmul(gates[:, :, None, None], scale[:, None, None])

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205
        gates, scale = ctx.saved_tensors
        total = gradient.sum((2, 3), dtype=gates.dtype)
        return gradient, total * scale, torch.einsum('nc,nc->c', total, gates)


class NoAttention(nn.Module):
    """Stands where a block or a layer has no attention."""

    def forward(self, trunk: Tensor, x: Tensor) -> Tensor:
        """Return ``trunk``."""
        return trunk


def build_attention(
    attention: dict | None,
    in_channels: int,
    out_channels: int,
    depthwise: bool = False,
) -> nn.Module:
    """Build an attention from its config, or the identity from None."""
    if attention is None:
        return NoAttention()
    sizes = dict(in_channels=in_channels, out_channels=out_channels)
    return MODELS.build({**attention, **sizes, 'depthwise': depthwise})


def takes(attention: nn.Module, activation: nn.Module) -> bool:
    """Tell whether an attention's ``forward`` is to apply an activation."""
    return (
        type(attention) in (SqueezeExcite, ShiftBalance)
        and attention.fused
        and type(activation) in fused_gate.BOUNDS
        and not any(map(fused_gate.has_hooks, (attention, activation)))
    )


def _fuses(fused: bool | None) -> bool:
    """Return what the argument or else the environment asks for."""
    if fused is None:
        fused = os.environ.get('SB_MM_FUSED_GATE') == '1'
    if fused and fused_gate is None:
        warnings.warn(
            'Fused gates need Triton, which comes with the CUDA wheels of '
            'torch: install one of these.',
            stacklevel=3,
        )
    return fused and fused_gate is not None
