"""An attention and the activation behind it in few calls, on a GPU.

Forward: the sums over the input's pixels, two kernels for the gates, and one
for the pixels of the trunk. Backward: one for these, three for the gates, and
the addition to the input's gradient.
"""
# ruff: noqa: ANN001 (the arguments of an autograd.Function have no types)

from math import inf

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import pixel_kernels
from .gate_kernels import MAX_ROWS
from .launch import INTERPRETED, launch
from .norm import MIN_VALUES, GateBatchNorm1d

FUNCTIONS = torch.tanh, torch.sigmoid, torch.relu, torch.positive
# What the activations clamp to.
BOUNDS = {type(None): (-inf, inf), nn.ReLU: (0.0, inf), nn.ReLU6: (0.0, 6.0)}
DTYPES = torch.float32, torch.bfloat16, torch.float16


class _FusedGate(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: ANN205
        ctx, trunk, x, w1, gamma1, beta1, w2, gamma2, beta2, scale,
        mean1, var1, numbers1, mean2, var2, numbers2,
        offset, function, combine, bounds,
    ):  # fmt: skip
        (hidden, inputs), outputs, n = w1.shape, w2.size(0), x.size(0)
        total = x.sum((2, 3), dtype=torch.float32)
        factor = 1 / (x.size(2) * x.size(3))
        normed1 = torch.empty(n + 1, hidden, device=x.device)
        launch(
            'hidden_forward', (total, w1), (mean1, var1, normed1),
            (n, hidden, inputs), (factor, *numbers1), '',
        )  # fmt: skip
        normed2 = torch.empty(n + 1, outputs, device=x.device)
        gates = torch.empty(n, outputs, device=x.device)
        second = normed1, gamma1, beta1, w2, gamma2, beta2, scale
        launch(
            'output_forward', second, (mean2, var2, normed2, gates),
            (n, outputs, hidden), (offset, *numbers2), function,
        )  # fmt: skip
        trunk = trunk.contiguous(memory_format=_layout(trunk))
        out = pixel_kernels.forward(trunk, gates, combine, bounds)
        if combine == 'mul':
            saved = trunk, gates
        else:
            saved = None if bounds == BOUNDS[type(None)] else out, None
        ctx.save_for_backward(total, w1, *second, normed2, *saved)
        ctx.constants = x.shape, x.dtype, factor, offset, function
        ctx.combined = combine, bounds
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):  # noqa: ANN205
        total, w1, *second, normed2, saved, gates = ctx.saved_tensors
        normed1, gamma1, beta1, w2, gamma2, beta2, scale = second
        shape, dtype, factor, offset, function = ctx.constants
        (hidden, inputs), outputs, n = w1.shape, w2.size(0), shape[0]
        device = w1.device
        if saved is None:
            dtrunk, dgates = dout, dout.sum((2, 3), dtype=torch.float32)[None]
        else:
            dout = dout.contiguous(memory_format=_layout(saved))
            dtrunk, dgates = pixel_kernels.backward(
                dout, saved, gates, *ctx.combined
            )
        dz2 = torch.empty(n, outputs, device=device)
        dvectors2 = torch.empty(3, outputs, device=device)
        launch(
            'output_backward', (dgates, normed2, gamma2, beta2, scale),
            (dz2, dvectors2), (n, outputs, dgates.size(0)), (offset,),
            function,
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
            dtrunk, dx, dw1, *dvectors1.unbind(), dw2, dgamma2, dbeta2,
            None if scale is None else dscale, *[None] * 10,
        )  # fmt: skip


def _layout(x: Tensor) -> torch.memory_format:
    # Of any images, torch.compile makes channels_last convolutions.
    compiling = torch.compiler.is_compiling()
    last = compiling or pixel_kernels.is_channels_last(x)
    return torch.channels_last if last else torch.contiguous_format


def applies(attention: nn.Module, trunk: Tensor, x: Tensor) -> bool:
    """Tell whether the kernels can compute an attention.

    On a CUDA device, in training on 8 to 256 images, whose statistics the
    norms use; if the gate is float32 and its parts are plain ones: no
    softmax, no dropout, no ``nn.SyncBatchNorm``, none that has hooks. Not in
    an export. There is no second derivative.
    """
    gate = attention.gate
    return (
        (_is_current(x) or INTERPRETED)
        and MIN_VALUES <= x.size(0) <= MAX_ROWS
        and x.dtype in DTYPES
        and trunk.dtype in DTYPES
        and attention.gate_function in FUNCTIONS
        and type(gate.dropout) is nn.Identity
        and _is_plain(gate.fc1, gate.bn1)
        and _is_plain(gate.fc2, gate.bn2)
        and not any(map(has_hooks, (gate, *gate._modules.values())))
        and not torch.jit.is_tracing()
    )


def _is_current(x: Tensor) -> bool:
    return x.is_cuda and x.get_device() == torch.cuda.current_device()


def _is_plain(linear: nn.Module, norm: nn.Module) -> bool:
    return (
        type(linear) is nn.Linear
        and linear.bias is None
        and linear.weight.dtype == torch.float32
        and type(norm) is GateBatchNorm1d
        and norm.learns
    )


def has_hooks(part: nn.Module) -> bool:
    """Tell whether somebody sees what a module is given or returns."""
    forward = part._forward_hooks or part._forward_pre_hooks
    return bool(forward or part._backward_hooks or part._backward_pre_hooks)


def attend(
    attention: nn.Module,
    trunk: Tensor,
    x: Tensor,
    activation: nn.Module | None,
) -> Tensor:
    """Return what ``attention(trunk, x, activation)`` does, if it applies."""
    gate, scale = attention.gate, getattr(attention, 'lambda_', None)
    weights, stats = [], []
    for linear, norm in (gate.fc1, gate.bn1), (gate.fc2, gate.bn2):
        weights += linear.weight, norm.weight, norm.bias
        stats += norm.running_mean, norm.running_var, (norm.eps, norm.momentum)
    return _FusedGate.apply(
        trunk, x, *weights, scale, *stats, float(gate.offset),
        attention.gate_function.__name__, 'mul' if scale is None else 'add',
        BOUNDS[type(activation)],
    )  # fmt: skip
