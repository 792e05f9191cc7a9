r"""The gate of a layer and its gating function in five Triton kernels.

Eq. 6-7 of arXiv:2103.13080 on ``(N, C)`` tensors, whose two dozen calls cost
a GPU far more than the arithmetic in them:

.. math:: s = \lambda\, g(L), \quad L = BN_2(W_2 h) + o, \quad
          h = ReLU(BN_1(W_1 p)), \quad p = GAP(x)

A program holds all ``N`` rows of some columns, so that the statistics of a
norm :math:`y = \gamma \hat z + \beta`, :math:`\hat z = (z - \mu) / \sigma`,
never leave it. It keeps :math:`\hat z` and, as row ``N`` of the same tensor,
:math:`1 / \sigma`. The backward pass makes :math:`h` and :math:`L` of them
again, and

.. math:: dz = \frac{\gamma}{\sigma} \left( dy - \frac{1}{N} \sum_n dy
               - \frac{\hat z}{N} \sum_n dy\, \hat z \right)

All of it is float32, and never TF32.
"""
# ruff: noqa: ANN001, ANN201, ANN202 (a kernel's arguments have no types)

import inspect
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from triton import knobs  # of Triton 3.4, whose launchers take these arguments

from .norm import MIN_VALUES, GateBatchNorm1d

MAX_ROWS = 256  # which a program's registers hold
FUNCTIONS = {torch.tanh: 'tanh', torch.sigmoid: 'sigmoid', torch.relu: 'relu'}
PRECISION = tl.constexpr('ieee')
# The columns of a program, and the columns of its input at a time.
BLOCK = dict(COLS=16, K=32)
_compiled = {}
_INTERPRETED = knobs.runtime.interpret


def _kernel(function: Callable) -> Callable:
    """Compile a function once for all sizes and addresses."""
    arguments = inspect.signature(function).parameters.values()
    names = [a.name for a in arguments if a.annotation is a.empty]
    return triton.jit(
        function,
        do_not_specialize=names,
        do_not_specialize_on_alignment=names,
    )


# ---- parts: tiles of (rows, columns) of contiguous tensors, zero outside --


@triton.jit
def _load(x, rows, cols, height, width):
    inside = (rows[:, None] < height) & (cols[None, :] < width)
    at = rows[:, None] * width + cols[None, :]
    return tl.load(x + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(x, tile, rows, cols, height, width):
    inside = (rows[:, None] < height) & (cols[None, :] < width)
    tl.store(x + rows[:, None] * width + cols[None, :], tile, mask=inside)


@triton.jit
def _row(x, cols, width):
    return tl.load(x + cols, mask=cols < width, other=0.0)[None, :]


@triton.jit
def _input(x, gamma, beta, rows, cols, n, width):
    """Load a Linear's input: the pooled sums, or ``h`` from its norm."""
    tile = _load(x, rows, cols, n, width)
    if gamma is not None:
        tile = _row(gamma, cols, width) * tile + _row(beta, cols, width)
        tile = tl.where((rows[:, None] < n) & (tile > 0), tile, 0.0)
    return tile


@triton.jit
def _linear_norm(
    x, x_gamma, x_beta, weight, mean, var, batches, normed, rows, cols,
    n, inputs, width, factor, eps, momentum, K: tl.constexpr,
):  # fmt: skip
    """Store and return the normalised ``factor * input @ weight.T``."""
    z = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for start in range(0, inputs, K):
        ks = start + tl.arange(0, K)
        tile = _input(x, x_gamma, x_beta, rows, ks, n, inputs)
        w = tl.trans(_load(weight, cols, ks, width, inputs))
        z = tl.dot(tile, w, z, input_precision=PRECISION)
    z *= factor
    mu = tl.sum(z, 0) / n
    z = tl.where(rows[:, None] < n, z - mu[None, :], 0.0)
    squares = tl.sum(z * z, 0)
    inverse = 1 / tl.sqrt(squares / n + eps)
    z *= inverse[None, :]
    _store(normed, z, rows, cols, n, width)
    valid = cols < width
    tl.store(normed + n * width + cols, inverse, mask=valid)
    old = tl.load(mean + cols, mask=valid)
    tl.store(mean + cols, old + momentum * (mu - old), mask=valid)
    old = tl.load(var + cols, mask=valid)
    unbiased = squares / (n - 1)
    tl.store(var + cols, old + momentum * (unbiased - old), mask=valid)
    if tl.program_id(0) == 0:
        tl.store(batches, tl.load(batches) + 1)
    return z


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
def _norm_backward(dy, normed, gamma, dvectors, rows, cols, n, width):
    """Return ``dz``, and store the gradients of gamma and beta."""
    z = _load(normed, rows, cols, n, width)
    dgamma, dbeta = tl.sum(dy * z, 0), tl.sum(dy, 0)
    tl.store(dvectors + cols, dgamma, mask=cols < width)
    tl.store(dvectors + width + cols, dbeta, mask=cols < width)
    slope = _row(gamma, cols, width) * _row(normed + n * width, cols, width)
    dz = slope * (dy - (dbeta[None, :] + z * dgamma[None, :]) / n)
    return tl.where(rows[:, None] < n, dz, 0.0)


@triton.jit
def _weight_backward(
    dz, x, x_gamma, x_beta, dw, cols, n, inputs, width,
    ROWS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Store ``dW = dz^T input``, where ``dz`` is what the program stored."""
    tl.debug_barrier()  # all its threads see it
    for start in range(0, inputs, K):
        ks = start + tl.arange(0, K)
        tile = tl.zeros((cols.shape[0], K), tl.float32)
        for first in range(0, n, ROWS):
            rows = first + tl.arange(0, ROWS)
            d = tl.trans(_load(dz, rows, cols, n, width))
            h = _input(x, x_gamma, x_beta, rows, ks, n, inputs)
            tile = tl.dot(d, h, tile, input_precision=PRECISION)
        _store(dw, tile, cols, ks, width, inputs)


# ---- kernels: what they read, what they write, sizes, numbers -------------


@_kernel
def hidden_forward(
    x, weight, mean, var, batches, normed,
    n, hidden, inputs, factor, eps, momentum,
    FUNCTION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The first Linear, of the sums over the pixels, and its norm."""
    rows = tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    _linear_norm(
        x, None, None, weight, mean, var, batches, normed, rows, cols,
        n, inputs, hidden, factor, eps, momentum, K,
    )  # fmt: skip


@_kernel
def output_forward(
    x, x_gamma, x_beta, weight, gamma, beta, scale,
    mean, var, batches, normed, out,
    n, outputs, hidden, offset, eps, momentum,
    FUNCTION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """ReLU, the second Linear, its norm, the gating function and lambda."""
    rows = tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    z = _linear_norm(
        x, x_gamma, x_beta, weight, mean, var, batches, normed, rows, cols,
        n, hidden, outputs, 1.0, eps, momentum, K,
    )  # fmt: skip
    z = _row(gamma, cols, outputs) * z + _row(beta, cols, outputs) + offset
    value, _ = _gating(z, FUNCTION)
    if scale is not None:
        value *= _row(scale, cols, outputs)
    _store(out, value, rows, cols, n, outputs)


@_kernel
def output_backward(
    dout, normed, gamma, beta, x, x_gamma, x_beta, scale, dz, dw, dvectors,
    n, outputs, hidden, offset,
    FUNCTION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Back to the second Linear's weights and output.

    ``dvectors`` are the gradients of gamma, beta and lambda.
    """
    rows = tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    z = _load(normed, rows, cols, n, outputs)
    z = _row(gamma, cols, outputs) * z + _row(beta, cols, outputs) + offset
    value, slope = _gating(z, FUNCTION)
    dy = _load(dout, rows, cols, n, outputs)
    if scale is not None:
        dscale = tl.sum(dy * value, 0)
        at = dvectors + 2 * outputs + cols
        tl.store(at, dscale, mask=cols < outputs)
        dy *= _row(scale, cols, outputs)
    dy *= slope
    d = _norm_backward(dy, normed, gamma, dvectors, rows, cols, n, outputs)
    _store(dz, d, rows, cols, n, outputs)
    _weight_backward(
        dz, x, x_gamma, x_beta, dw, cols, n, hidden, outputs, min(ROWS, K), K
    )


@_kernel
def hidden_backward(
    dnext, next_weight, normed, gamma, beta, x, dz, dw, dvectors,
    n, hidden, inputs, outputs, factor,
    FUNCTION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Back to the first Linear's weights and output."""
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
    _store(dz, d * factor, rows, cols, n, hidden)
    _weight_backward(
        dz, x, None, None, dw, cols, n, inputs, hidden, min(ROWS, K), K
    )


@_kernel
def input_backward(
    dz, weight, dx, n, inputs, hidden,
    FUNCTION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Back to the pixels: ``dx = dz W_1``, in the type of ``dx``."""
    rows = tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    d = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, hidden, K):
        ks = start + tl.arange(0, K)
        tile = _load(dz, rows, ks, n, hidden)
        w = _load(weight, ks, cols, hidden, inputs)
        d = tl.dot(tile, w, d, input_precision=PRECISION)
    _store(dx, d, rows, cols, n, inputs)


# ---- their use ------------------------------------------------------------


def _launch_gate(
    kernel: str,
    reads: Sequence[Tensor | None],
    writes: Sequence[Tensor],
    sizes: Sequence[int],
    numbers: Sequence[float],
    function: str,
) -> None:
    """Start a kernel for ``sizes[:2]``, the rows and columns of its result."""
    rows = max(16, triton.next_power_of_2(sizes[0]))
    grid = triton.cdiv(sizes[1], BLOCK['COLS']), 1, 1
    if _INTERPRETED:  # there, NumPy >= 2.4 makes no range of an integer
        sizes = map(tl.constexpr, sizes)
    args = *reads, *writes, *sizes, *numbers, function, rows, *BLOCK.values()
    # What it is compiled for.
    key = (
        kernel, function, rows, reads[0].dtype, writes[-1].dtype,
        reads[-1] is None, writes[-1].device,
    )  # fmt: skip
    if (
        key in _compiled and not _INTERPRETED
    ):  # Triton's own look-up takes the host ten times this
        _compiled[key][grid](*args)
    else:
        _compiled[key] = globals()[kernel][grid](
            *args, num_warps=8 if rows > 128 else 4, num_stages=2
        )
    torch.autograd.graph.increment_version(writes)


# An operator, so that torch.compile does not look into it.
_schema = torch.library.infer_schema(_launch_gate, mutates_args=('writes',))
torch.library.define('sb_mm::launch_gate', _schema)
torch.library.impl('sb_mm::launch_gate', ('cpu', 'cuda'), _launch_gate)
torch.library.register_fake('sb_mm::launch_gate', lambda *_: None)


def _launch(*args) -> None:
    """Start a kernel, as an operator where one is recorded or compiled."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        torch.ops.sb_mm.launch_gate(*args)
    else:
        _launch_gate(*args)


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
        _launch(
            'hidden_forward', (total, w1), (*stats1, normed1),
            (n, hidden, inputs), (factor, *numbers1), '',
        )  # fmt: skip
        normed2 = torch.empty(n + 1, outputs, device=x.device)
        out = torch.empty(n, outputs, device=x.device, dtype=dtype)
        second = normed1, gamma1, beta1, w2, gamma2, beta2, scale
        _launch(
            'output_forward', second, (*stats2, normed2, out),
            (n, outputs, hidden), (offset, *numbers2), function,
        )  # fmt: skip
        ctx.save_for_backward(total, w1, *second, normed2)
        ctx.constants = x.shape, x.dtype, factor, offset, function
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):  # noqa: ANN205
        (
            total,
            w1,
            normed1,
            gamma1,
            beta1,
            w2,
            gamma2,
            beta2,
            scale,
            normed2,
        ) = ctx.saved_tensors
        shape, dtype, factor, offset, function = ctx.constants
        (hidden, inputs), outputs, n = w1.shape, w2.size(0), shape[0]
        device = w1.device
        dz2 = torch.empty(n, outputs, device=device)
        dw2 = torch.empty(outputs, hidden, device=device)
        dvectors2 = torch.empty(3, outputs, device=device)
        _launch(
            'output_backward',
            (dout.contiguous(), normed2, gamma2, beta2,
             normed1, gamma1, beta1, scale), (dz2, dw2, dvectors2),
            (n, outputs, hidden), (offset,), function,
        )  # fmt: skip
        dz1 = torch.empty(n, hidden, device=device)
        dw1 = torch.empty(hidden, inputs, device=device)
        dvectors1 = torch.empty(2, hidden, device=device)
        _launch(
            'hidden_backward', (dz2, w2, normed1, gamma1, beta1, total),
            (dz1, dw1, dvectors1), (n, hidden, inputs, outputs), (factor,), '',
        )  # fmt: skip
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty(n, inputs, device=device, dtype=dtype)
            sizes = n, inputs, hidden
            _launch('input_backward', (dz1, w1), (dx,), sizes, (), '')
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
        (_is_current(x) or _INTERPRETED)
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
