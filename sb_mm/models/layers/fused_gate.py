"""The gate of a layer and its gating function in few calls, on a GPU.

Forward: the sums over the pixels and two kernels. Backward: three kernels
between the sum over the pixels and the addition to the input's gradient.
"""
# ruff: noqa: ANN001 (the arguments of an autograd.Function have no types)

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .gate_kernels import INTERPRETED, MAX_ROWS, launch
from .norm import MIN_VALUES, GateBatchNorm1d

FUNCTIONS = {torch.tanh: 'tanh', torch.sigmoid: 'sigmoid', torch.relu: 'relu'}


class _FusedGate(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: ANN205
        ctx, x, w1, gamma1, beta1, w2, gamma2, beta2, scale,
        stats1, numbers1, stats2, numbers2, offset, function, dtype,
    ):  # fmt: skip
        (hidden, inputs), outputs, n = w1.shape, w2.size(0), x.size(0)
        total = x.sum((2, 3), dtype=torch.float32)
        factor = 1 / (x.size(2) * x.size(3))
        normed1 = torch.empty(n + 1, hidden, device=x.device)
        launch(
            'hidden_forward', (total, w1), (*stats1, normed1),
            (n, hidden, inputs), (factor, *numbers1), '',
        )  # fmt: skip
        normed2 = torch.empty(n + 1, outputs, device=x.device)
        out = torch.empty(n, outputs, device=x.device, dtype=dtype)
        second = normed1, gamma1, beta1, w2, gamma2, beta2, scale
        launch(
            'output_forward', second, (*stats2, normed2, out),
            (n, outputs, hidden), (offset, *numbers2), function,
        )  # fmt: skip
        ctx.save_for_backward(total, w1, *second, normed2)
        ctx.constants = x.shape, x.dtype, factor, offset, function
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):  # noqa: ANN205
        total, w1, *second, normed2 = ctx.saved_tensors
        normed1, gamma1, beta1, w2, gamma2, beta2, scale = second
        shape, dtype, factor, offset, function = ctx.constants
        (hidden, inputs), outputs, n = w1.shape, w2.size(0), shape[0]
        device = w1.device
        dz2 = torch.empty(n, outputs, device=device)
        dvectors2 = torch.empty(3, outputs, device=device)
        launch(
            'output_backward',
            (dout.contiguous(), normed2, gamma2, beta2, scale),
            (dz2, dvectors2), (n, outputs), (offset,), function,
        )  # fmt: skip
        dz1 = torch.empty(n, hidden, device=device)
        dw2 = torch.empty(outputs, hidden, device=device)
        dvectors1 = torch.empty(2, hidden, device=device)
        launch(
            'hidden_backward', (dz2, w2, normed1, gamma1, beta1),
            (dz1, dw2, dvectors1), (n, hidden, outputs), (factor,), '',
        )  # fmt: skip
        dw1 = torch.empty(hidden, inputs, device=device)
        dx = torch.empty(n, inputs, device=device, dtype=dtype)
        sizes = n, inputs, hidden
        launch('input_backward', (dz1, w1, total), (dw1, dx), sizes, (), '')
        dx = dx[:, :, None, None].expand(shape)  # a view
        dgamma2, dbeta2, dscale = dvectors2.unbind()
        return (
            dx, dw1, *dvectors1.unbind(), dw2, dgamma2, dbeta2,
            None if scale is None else dscale, *[None] * 7,
        )  # fmt: skip


def applies(gate: nn.Module, x: Tensor) -> bool:
    """Tell whether the kernels can compute a gate of ``x``.

    On a CUDA device, in training on 8 to 256 images, whose statistics the
    norms use; if the gate is float32 and its parts are plain ones: no
    dropout, no ``nn.SyncBatchNorm``, none that is quantised or has hooks.
    Not in an export. There is no second derivative.
    """
    return (
        (_is_current(x) or INTERPRETED)
        and MIN_VALUES <= x.size(0) <= MAX_ROWS
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and type(gate.dropout) is nn.Identity
        and all(map(_is_plain_norm, (gate.bn1, gate.bn2)))
        and all(map(_is_plain_linear, (gate.fc1, gate.fc2)))
        and not any(map(_has_hooks, (gate, *gate._modules.values())))
        and not torch.jit.is_tracing()
    )


def _is_current(x: Tensor) -> bool:
    return x.is_cuda and x.get_device() == torch.cuda.current_device()


def _is_plain_norm(norm: nn.Module) -> bool:
    plain = type(norm) is GateBatchNorm1d and norm.training and norm.affine
    return plain and norm.track_running_stats and norm.momentum is not None


def _is_plain_linear(linear: nn.Module) -> bool:
    plain = type(linear) is nn.Linear and linear.bias is None
    return plain and linear.weight.dtype == torch.float32


def _has_hooks(part: nn.Module) -> bool:
    forward = part._forward_hooks or part._forward_pre_hooks
    return bool(forward or part._backward_hooks or part._backward_pre_hooks)


def fused_gate(
    gate: nn.Module,
    x: Tensor,
    function: Callable[[Tensor], Tensor],
    scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return ``scale * function(gate(x))``, of shape ``(N, Cout)``.

    Args:
        gate: A :class:`.ChannelGate` that :func:`applies`.
        x: ``(N, Cin, H, W)``.
        function: The gating function. One without a kernel, such as softmax,
            is called on the kernels' logits.
        scale: Lambda, ``(Cout,)``, or None for 1.
        dtype: Of the result.
    """
    if function not in FUNCTIONS:
        gates = function(_call(gate, x, 'none', None, torch.float32))
        return (gates if scale is None else scale * gates).to(dtype)
    return _call(gate, x, FUNCTIONS[function], scale, dtype)


def _call(
    gate: nn.Module,
    x: Tensor,
    function: str,
    scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    weights, stats = [], []
    for linear, norm in (gate.fc1, gate.bn1), (gate.fc2, gate.bn2):
        weights += linear.weight, norm.weight, norm.bias
        buffers = norm.running_mean, norm.running_var, norm.num_batches_tracked
        stats += buffers, (norm.eps, norm.momentum)
    offset = float(gate.offset)
    return _FusedGate.apply(
        x, *weights, scale, *stats, offset, function, dtype
    )
