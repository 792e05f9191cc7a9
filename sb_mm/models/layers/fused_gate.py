r"""The gate of a layer and its gating function in a handful of Triton kernels.

Eq. 6-7 of arXiv:2103.13080 on ``(N, C)`` tensors, whose 26 small calls cost a
GPU more than their arithmetic does:

.. math:: s = \lambda\, g(L), \quad L = BN_2(W_2 h) + o, \quad
          h = ReLU(BN_1(W_1 p)), \quad p = GAP(x)

A program holds all ``N`` rows of some channels, so that the statistics of the
batch never leave it. With :math:`\hat z` for a normalised :math:`z`, each norm
:math:`y = \gamma \hat z + \beta` keeps :math:`\hat z` and
:math:`1 / \sigma`, from which the backward pass makes :math:`h` and :math:`L`
again:

.. math:: dz = \frac{\gamma}{\sigma} \left( dy - \frac{1}{N} \sum_n dy
               - \frac{\hat z}{N} \sum_n dy\, \hat z \right)

All arithmetic is float32 and, unlike cuBLAS's, never TF32.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .norm import MIN_VALUES, GateBatchNorm1d

# More rows do not fit the registers of a program.
MAX_ROWS = 256
_DTYPES = torch.float32, torch.bfloat16, torch.float16
_FUNCTIONS = {
    torch.tanh: 'tanh',
    torch.sigmoid: 'sigmoid',
    torch.relu: 'relu',
}
# TF32 would be another result than the plain form's.
PRECISION = tl.constexpr('ieee')
_INTERPRETED = triton.knobs.runtime.interpret


# ---- parts of the kernels: tiles of (rows, columns), zero outside --------


@triton.jit
def _affine(tile, gamma, beta, cols, count):
    """Return ``gamma * tile + beta``."""
    gamma = tl.load(gamma + cols, mask=cols < count, other=0.0)
    beta = tl.load(beta + cols, mask=cols < count, other=0.0)
    return gamma[None, :] * tile + beta[None, :]


@triton.jit
def _load(x, rows, cols, row_count, count):
    inside = (rows[:, None] < row_count) & (cols[None, :] < count)
    at = rows[:, None] * count + cols[None, :]
    return tl.load(x + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(x, tile, rows, cols, row_count, count):
    inside = (rows[:, None] < row_count) & (cols[None, :] < count)
    tl.store(x + rows[:, None] * count + cols[None, :], tile, mask=inside)


@triton.jit
def _input(x, gamma, beta, rows, cols, n, count):
    """Load a layer's input: the pooled sums, or ``h`` from its norm."""
    tile = _load(x, rows, cols, n, count)
    if gamma is not None:
        tile = tl.maximum(_affine(tile, gamma, beta, cols, count), 0.0)
        tile = tl.where(rows[:, None] < n, tile, 0.0)
    return tile


@triton.jit
def _gating(logits, FUNCTION: tl.constexpr):
    """Return the gating function and its derivative."""
    if FUNCTION == 'tanh':
        value = 2 * tl.sigmoid(2 * logits) - 1
        slope = 1 - value * value
    elif FUNCTION == 'sigmoid':
        value = tl.sigmoid(logits)
        slope = value * (1 - value)
    elif FUNCTION == 'relu':
        value = tl.maximum(logits, 0.0)
        slope = tl.where(logits > 0, 1.0, 0.0)
    else:
        value = logits
        slope = tl.full(logits.shape, 1.0, tl.float32)
    return value, slope


@triton.jit
def _norm_backward(dy, normed_at, gamma_at, dnorm, rows, cols, n, count):
    """Return ``dz``, and store the gradients of gamma and beta."""
    normed = _load(normed_at, rows, cols, n, count)
    valid = cols < count
    slope = tl.load(normed_at + n * count + cols, mask=valid, other=0.0)
    slope *= tl.load(gamma_at + cols, mask=valid, other=0.0)
    dgamma = tl.sum(dy * normed, 0)
    dbeta = tl.sum(dy, 0)
    tl.store(dnorm + cols, dgamma, mask=valid)
    tl.store(dnorm + count + cols, dbeta, mask=valid)
    common = (dbeta[None, :] + normed * dgamma[None, :]) / n
    dz = slope[None, :] * (dy - common)
    return tl.where(rows[:, None] < n, dz, 0.0)


@triton.jit
def _weight_backward(
    dz, x, gamma, beta, dw, cols, n, inputs, outputs,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Store ``dW = dz^T input``, where ``dz`` is what this program stored."""
    tl.debug_barrier()
    for start in range(0, inputs, K):
        ks = start + tl.arange(0, K)
        tile = tl.zeros((COLS, K), tl.float32)
        for first in range(0, n, ROWS):
            rows = first + tl.arange(0, ROWS)
            d = tl.trans(_load(dz, rows, cols, n, outputs))
            h = _input(x, gamma, beta, rows, ks, n, inputs)
            tile = tl.dot(d, h, tile, input_precision=PRECISION)
        _store(dw, tile, cols, ks, outputs, inputs)


# ---- the kernels ---------------------------------------------------------


@triton.jit(do_not_specialize=('n', 'inputs', 'outputs'))
def layer_forward(
    x, x_gamma, x_beta, weight, mean, var, batches, normed,
    gamma, beta, scale, out,
    n, inputs, outputs, factor, offset, eps, momentum,
    FUNCTION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Linear and batch norm; with ``out``, the gating function as well.

    Stores ``(z - mean) / std`` in the first ``n`` rows of ``normed`` and
    ``1 / std`` in the last.
    """
    rows = tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    z = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, inputs, K):
        ks = start + tl.arange(0, K)
        tile = _input(x, x_gamma, x_beta, rows, ks, n, inputs)
        w = tl.trans(_load(weight, cols, ks, outputs, inputs))
        z = tl.dot(tile, w, z, input_precision=PRECISION)
    z *= factor
    m = tl.sum(z, 0) / n
    z = tl.where(rows[:, None] < n, z - m[None, :], 0.0)
    squares = tl.sum(z * z, 0)
    inverse = 1 / tl.sqrt(squares / n + eps)
    z *= inverse[None, :]
    valid = cols < outputs
    _store(normed, z, rows, cols, n, outputs)
    tl.store(normed + n * outputs + cols, inverse, mask=valid)
    old = tl.load(mean + cols, mask=valid)
    tl.store(mean + cols, old + momentum * (m - old), mask=valid)
    old = tl.load(var + cols, mask=valid)
    unbiased = squares / (n - 1)
    tl.store(var + cols, old + momentum * (unbiased - old), mask=valid)
    if tl.program_id(0) == 0:
        tl.store(batches, tl.load(batches) + 1)
    if out is not None:
        logits = _affine(z, gamma, beta, cols, outputs) + offset
        value, _ = _gating(logits, FUNCTION)
        if scale is not None:
            value *= tl.load(scale + cols, mask=valid, other=0.0)[None, :]
        _store(out, value, rows, cols, n, outputs)


@triton.jit(do_not_specialize=('n', 'inputs', 'outputs'))
def output_backward(
    dout, normed, gamma, beta, scale, x, x_gamma, x_beta, dz, dw, dvectors,
    n, inputs, outputs, offset,
    FUNCTION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Back through the gating function, the second norm and its Linear.

    ``dvectors`` are the gradients of gamma, beta and lambda.
    """
    rows = tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    valid = cols < outputs
    logits = _load(normed, rows, cols, n, outputs)
    logits = _affine(logits, gamma, beta, cols, outputs) + offset
    value, slope = _gating(logits, FUNCTION)
    dy = _load(dout, rows, cols, n, outputs)
    if scale is not None:
        dscale = tl.sum(dy * value, 0)
        tl.store(dvectors + 2 * outputs + cols, dscale, mask=valid)
        slope *= tl.load(scale + cols, mask=valid, other=0.0)[None, :]
    dy *= slope
    d = _norm_backward(dy, normed, gamma, dvectors, rows, cols, n, outputs)
    _store(dz, d, rows, cols, n, outputs)
    _weight_backward(
        dz, x, x_gamma, x_beta, dw, cols, n, inputs, outputs,
        min(ROWS, K), COLS, K,
    )  # fmt: skip


@triton.jit(do_not_specialize=('n', 'inputs', 'hidden', 'outputs'))
def hidden_backward(
    dnext, next_weight, normed, gamma, beta, x, dz, dw, dvectors,
    n, inputs, hidden, outputs, factor,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Back through the second Linear's input, ReLU, the first norm, its W."""
    rows = tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    dy = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, outputs, K):
        ks = start + tl.arange(0, K)
        tile = _load(dnext, rows, ks, n, outputs)
        w = _load(next_weight, ks, cols, outputs, hidden)
        dy = tl.dot(tile, w, dy, input_precision=PRECISION)
    h = _input(normed, gamma, beta, rows, cols, n, hidden)
    dy = tl.where(h > 0, dy, 0.0)
    d = _norm_backward(dy, normed, gamma, dvectors, rows, cols, n, hidden)
    d *= factor
    _store(dz, d, rows, cols, n, hidden)
    _weight_backward(
        dz, x, None, None, dw, cols, n, inputs, hidden,
        min(ROWS, K), COLS, K,
    )  # fmt: skip


@triton.jit(do_not_specialize=('n', 'inputs', 'hidden'))
def input_backward(
    dz, weight, dx, n, inputs, hidden,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Back through the first Linear: ``dx = dz W``, in the type of ``dx``."""
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    d = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, hidden, K):
        ks = start + tl.arange(0, K)
        tile = _load(dz, rows, ks, n, hidden)
        w = _load(weight, ks, cols, hidden, inputs)
        d = tl.dot(tile, w, d, input_precision=PRECISION)
    _store(dx, d, rows, cols, n, inputs)


# ---- as operators, which torch.compile does not look into ----------------


def _operator(*written: str) -> Callable[[Callable], Callable]:
    """Register a function that writes some of its arguments, by its name.

    Not as ``torch.library.custom_op``, which takes the host ten times as long.
    """

    def register(function: Callable) -> Callable:
        name = f'sb_mm::{function.__name__}'
        schema = torch.library.infer_schema(function, mutates_args=written)
        torch.library.define(name, schema)
        torch.library.impl(name, ('cpu', 'cuda'), function)
        torch.library.register_fake(name, lambda *_: None)
        return getattr(torch.ops.sb_mm, function.__name__)

    return register


def _launch(kernel: Callable, grid: tuple[int, ...], rows: int, *args) -> None:
    """Start programs of ``rows`` (a power of 2) times 16 columns each.

    A dot takes no less than 16 of both.
    """
    if _INTERPRETED:  # numpy >= 2.4 makes no range of the integers there
        args = [tl.constexpr(a) if isinstance(a, int) else a for a in args]
    kernel[grid](
        *args,
        ROWS=rows,
        COLS=16,
        K=32,
        num_warps=8 if rows > 128 else 4,
        num_stages=2,
    )


def _columns(kernel: Callable, n: int, columns: int, *args) -> None:
    """Start programs that hold all ``n`` rows."""
    rows = max(16, triton.next_power_of_2(n))
    _launch(kernel, (triton.cdiv(columns, 16),), rows, *args)


@_operator('mean', 'var', 'batches', 'normed')
def gate_hidden(
    total: Tensor, weight: Tensor, mean: Tensor, var: Tensor, batches: Tensor,
    normed: Tensor, factor: float, eps: float, momentum: float,
) -> None:  # fmt: skip
    """Pooled sums to ``normed``, ``(N + 1, hidden)``."""
    n, inputs = total.shape
    units = weight.size(0)
    _columns(
        layer_forward, n, units,
        total, None, None, weight, mean, var, batches, normed,
        None, None, None, None,
        n, inputs, units, factor, 0.0, eps, momentum, '',
    )  # fmt: skip
    torch.autograd.graph.increment_version((mean, var, batches))


@_operator('mean', 'var', 'batches', 'normed', 'out')
def gate_output(
    hidden: Tensor, hidden_gamma: Tensor, hidden_beta: Tensor, weight: Tensor,
    mean: Tensor, var: Tensor, batches: Tensor, normed: Tensor,
    gamma: Tensor, beta: Tensor, scale: Tensor | None, out: Tensor,
    offset: float, eps: float, momentum: float, function: str,
) -> None:  # fmt: skip
    """The hidden layer's ``normed`` to ``out``, ``(N, Cout)``."""
    n, outputs = out.shape
    _columns(
        layer_forward, n, outputs,
        hidden, hidden_gamma, hidden_beta, weight, mean, var, batches, normed,
        gamma, beta, scale, out,
        n, hidden.size(1), outputs, 1.0, offset, eps, momentum, function,
    )  # fmt: skip
    torch.autograd.graph.increment_version((mean, var, batches))


@_operator('dz', 'dw', 'dvectors')
def gate_output_backward(
    dout: Tensor, normed: Tensor, gamma: Tensor, beta: Tensor,
    scale: Tensor | None, hidden: Tensor, hidden_gamma: Tensor,
    hidden_beta: Tensor, dz: Tensor, dw: Tensor, dvectors: Tensor,
    offset: float, function: str,
) -> None:  # fmt: skip
    """From the gradient of ``out`` to those of ``W_2 h`` and ``W_2``."""
    n, outputs = dout.shape
    _columns(
        output_backward, n, outputs,
        dout, normed, gamma, beta, scale,
        hidden, hidden_gamma, hidden_beta, dz, dw, dvectors,
        n, hidden.size(1), outputs, offset, function,
    )  # fmt: skip


@_operator('dz', 'dw', 'dvectors')
def gate_hidden_backward(
    dnext: Tensor, next_weight: Tensor, normed: Tensor, gamma: Tensor,
    beta: Tensor, total: Tensor, dz: Tensor, dw: Tensor, dvectors: Tensor,
    factor: float,
) -> None:  # fmt: skip
    """From the gradient of ``W_2 h`` to those of the sums' and ``W_1``."""
    n, units = dz.shape
    _columns(
        hidden_backward, n, units,
        dnext, next_weight, normed, gamma, beta, total, dz, dw, dvectors,
        n, total.size(1), units, dnext.size(1), factor,
    )  # fmt: skip


@_operator('dx')
def gate_input_backward(dz: Tensor, weight: Tensor, dx: Tensor) -> None:
    """``dx = dz W_1``, in the type of ``dx``."""
    (n, hidden), inputs = dz.shape, weight.size(1)
    grid = triton.cdiv(inputs, 16), triton.cdiv(n, 32)
    _launch(input_backward, grid, 32, dz, weight, dx, n, inputs, hidden)


class _FusedGate(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: ANN205
        ctx, x, w1, gamma1, beta1, w2, gamma2, beta2, scale,  # noqa: ANN001
        stats1, stats2, offset, function, dtype,  # noqa: ANN001
    ):  # fmt: skip
        total = x.sum((2, 3), dtype=torch.float32)
        factor = 1 / (x.size(2) * x.size(3))
        n = x.size(0)
        mean, var, batches, eps, momentum = stats1
        hidden = torch.empty(n + 1, w1.size(0), device=x.device)
        gate_hidden(
            total, w1, mean, var, batches, hidden, factor, eps, momentum
        )
        mean, var, batches, eps, momentum = stats2
        normed = torch.empty(n + 1, w2.size(0), device=x.device)
        out = torch.empty_like(normed[1:], dtype=dtype)
        gate_output(
            hidden, gamma1, beta1, w2, mean, var, batches, normed,
            gamma2, beta2, scale, out, offset, eps, momentum, function,
        )  # fmt: skip
        ctx.save_for_backward(
            total, w1, gamma1, beta1, w2, gamma2, beta2, scale, hidden, normed
        )
        ctx.rest = x.shape, x.dtype, factor, offset, function
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):  # noqa: ANN001, ANN205
        total, w1, gamma1, beta1, w2, gamma2, beta2, scale, hidden, normed = (
            ctx.saved_tensors
        )
        shape, dtype, factor, offset, function = ctx.rest
        dz2, dw2 = torch.empty_like(normed[1:]), torch.empty_like(w2)
        dvectors2 = torch.empty(3, w2.size(0), device=w2.device)
        gate_output_backward(
            dout.contiguous(), normed, gamma2, beta2, scale,
            hidden, gamma1, beta1, dz2, dw2, dvectors2, offset, function,
        )  # fmt: skip
        dz1, dw1 = torch.empty_like(hidden[1:]), torch.empty_like(w1)
        dvectors1 = torch.empty(2, w1.size(0), device=w1.device)
        gate_hidden_backward(
            dz2, w2, hidden, gamma1, beta1, total, dz1, dw1, dvectors1, factor
        )
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(total, dtype=dtype)
            gate_input_backward(dz1, w1, dx)
            # Not written to every pixel: a view.
            dx = dx[:, :, None, None].expand(shape)
        dgamma1, dbeta1 = dvectors1.unbind()
        dgamma2, dbeta2, dscale = dvectors2.unbind()
        return (
            dx, dw1, dgamma1, dbeta1, dw2, dgamma2, dbeta2,
            None if scale is None else dscale, *[None] * 5,
        )  # fmt: skip


# ---- what the layers call ------------------------------------------------


def applies(gate: nn.Module, x: Tensor) -> bool:
    """Tell whether the kernels can compute a gate of ``x``.

    In training on a CUDA device, with a batch whose statistics the norms use
    and which fits (8 to 256 images), in float32, bfloat16 or float16; if the
    gate is float32, has plain parts (no dropout, no ``nn.SyncBatchNorm``, not
    quantised) without forward or backward hooks; and not in an export.
    """
    norms = gate.bn1, gate.bn2
    return (
        (x.is_cuda or _INTERPRETED)
        and MIN_VALUES <= x.size(0) <= MAX_ROWS
        and x.dtype in _DTYPES
        and all(map(_is_usable_norm, norms))
        and all(map(_is_usable_linear, (gate.fc1, gate.fc2)))
        and type(gate.dropout) is nn.Identity
        and not any(map(_has_hooks, (gate, *gate._modules.values())))
        and not torch.jit.is_tracing()
    )


def _is_usable_norm(norm: nn.Module) -> bool:
    return (
        type(norm) is GateBatchNorm1d
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
    )


def _is_usable_linear(linear: nn.Module) -> bool:
    return (
        type(linear) is nn.Linear
        and linear.bias is None
        and linear.weight.dtype == torch.float32
    )


def _has_hooks(part: nn.Module) -> bool:
    return bool(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
    )


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
    if function not in _FUNCTIONS:
        gates = function(_call(gate, x, None, '', torch.float32))
        return (gates if scale is None else scale * gates).to(dtype)
    return _call(gate, x, scale, _FUNCTIONS[function], dtype)


def _call(
    gate: nn.Module,
    x: Tensor,
    scale: Tensor | None,
    function: str,
    dtype: torch.dtype,
) -> Tensor:
    layers = (gate.fc1, gate.bn1), (gate.fc2, gate.bn2)
    weights = [
        weight
        for linear, norm in layers
        for weight in (linear.weight, norm.weight, norm.bias)
    ]
    stats = [
        (
            norm.running_mean,
            norm.running_var,
            norm.num_batches_tracked,
            norm.eps,
            norm.momentum,
        )
        for _, norm in layers
    ]
    return _FusedGate.apply(
        x, *weights, scale, *stats, float(gate.offset), function, dtype
    )
