"""Batch normalisation and the shift behind it in one pass, for training."""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

# Elements from which on the fewer passes outweigh the more calls.
_WORTHWHILE = 1 << 17
# Squared mean over variance: up to here, the difference of the two moments
# in float32 keeps five digits of the variance.
_WELL_CONDITIONED = 100.0


def can_shift_in_norm(norm: nn.Module, y: Tensor) -> bool:
    """Tell whether :func:`shifted_batch_norm` applies, and is worth it.

    It is for training in float32 on a CPU with batch statistics; compilers
    fuse the plain operations better.
    """
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and torch.is_grad_enabled()
        and y.device.type == 'cpu'
        and y.dtype == torch.float32
        and y.numel() >= _WORTHWHILE
        and (y.is_contiguous() or _is_channels_last(y))
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def shifted_batch_norm(
    norm: nn.BatchNorm2d, y: Tensor, shift: Tensor
) -> Tensor:
    """Return ``norm(y) + shift`` of ``(N, C, H, W)`` and ``(N, C)``.

    The shift joins the bias, so that it costs no pass over the pixels. Where
    PyTorch's own statistics are slow (without channels_last: 7 times as slow
    as reading the tensor, measured on 2 cores), they come from the sums and
    norms of the samples' channels.
    """
    norm.num_batches_tracked.add_(1)
    return _ShiftedBatchNorm.apply(
        y,
        shift,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.momentum,
        norm.eps,
    )


class _ShiftedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        y: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        running = (running_mean, running_var)
        mean, var = _update_statistics(y, *running, momentum)
        inverse_std = torch.rsqrt(var + eps)
        scale = weight * inverse_std
        ctx.save_for_backward(y, weight, *running, mean, inverse_std)
        ctx.eps = eps
        return _affine(
            y, scale, torch.addcmul(bias, mean, scale, value=-1) + shift
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, *statistics = ctx.saved_tensors
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, y, weight, *statistics, True, ctx.eps, [True] * 3
        )
        shift = grad.sum((2, 3))
        return grads[0], shift, *grads[1:], None, None, None, None


def _affine(y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return ``scale * y + bias``; ``scale`` is ``(C,)``, ``bias`` (N, C)."""
    if not y.is_contiguous():
        return torch.addcmul(bias[:, :, None, None], y, scale[:, None, None])
    # Normalisation with given statistics, of N * C channels, is PyTorch's
    # fastest way to do this. An activation in place must not see a view, so
    # the view is of the result and not the other way round.
    out = torch.empty_like(y)
    channels = bias.numel()
    flat = (1, channels, *y.shape[2:])
    torch.native_batch_norm(
        y.view(flat),
        scale.repeat(len(y)),
        bias.view(channels),
        y.new_zeros(channels),
        y.new_ones(channels),
        False,
        0.0,
        0.0,
        out=(out.view(flat), y.new_empty(0), y.new_empty(0)),
    )
    return out


def _update_statistics(
    y: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float
) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance ``(C,)``; update the running ones."""
    moments = _moments(y) if y.is_contiguous() else None
    if moments is None:
        return torch.batch_norm_update_stats(
            y, running_mean, running_var, momentum
        )
    mean, var = moments
    count = y.numel() // y.size(1)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * (count / (count - 1)), momentum)
    return mean, var


def _moments(y: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return mean and variance, or None where they would be inexact."""
    rows = y.flatten(2)
    count = y.numel() // y.size(1)
    mean = rows.sum(2).sum(0, dtype=torch.double) / count
    norms = torch.linalg.vector_norm(rows, dim=2).double()
    square = norms.square_().sum(0) / count
    var = square - mean.square()
    if (square > _WELL_CONDITIONED * var).any():
        return None
    return mean.float(), var.float()


def _is_channels_last(y: Tensor) -> bool:
    return y.is_contiguous(memory_format=torch.channels_last)
