r"""The Triton kernels of the gate of a layer and its gating function.

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

All of it is float32; a product is three of TF32, which is as exact.
"""
# ruff: noqa: ANN001, ANN201, ANN202 (a kernel's arguments have no types)

from collections.abc import Sequence
from functools import partial

import triton
import triton.language as tl
from torch import Tensor

from .launch import Plan, kernel

MAX_ROWS = 256  # which a program's registers hold
PRECISION = tl.constexpr('tf32x3')
# The columns of a program, and the columns of its input at a time.
BLOCK = dict(COLS=16, K=32)


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
    x, x_gamma, x_beta, weight, mean, var, normed, rows, cols,
    n, inputs, width, factor, eps, momentum, K: tl.constexpr,
):  # fmt: skip
    """Store and return the normalised ``factor * input @ weight.T``."""
    valid = cols < width
    old_mean = tl.load(mean + cols, mask=valid)  # early: it takes a while
    old_var = tl.load(var + cols, mask=valid)
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
    tl.store(normed + n * width + cols, inverse, mask=valid)
    mu = old_mean + momentum * (mu - old_mean)
    tl.store(mean + cols, mu, mask=valid)
    unbiased = squares / (n - 1)
    unbiased = old_var + momentum * (unbiased - old_var)
    tl.store(var + cols, unbiased, mask=valid)
    return z


@triton.jit
def _product(x, weight, rows, cols, n, inputs, width, K: tl.constexpr):
    """Return ``x @ weight``."""
    z = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for start in range(0, inputs, K):
        ks = start + tl.arange(0, K)
        tile = _load(x, rows, ks, n, inputs)
        w = _load(weight, ks, cols, inputs, width)
        z = tl.dot(tile, w, z, input_precision=PRECISION)
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
    dz, x, x_gamma, x_beta, dw, tile, n, inputs, width,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Store a tile of ``dW = dz^T input``."""
    across = tl.cdiv(inputs, K)
    cols = tile // across * COLS + tl.arange(0, COLS)
    ks = tile % across * K + tl.arange(0, K)
    total = tl.zeros((COLS, K), tl.float32)
    for first in range(0, n, ROWS):
        rows = first + tl.arange(0, ROWS)
        d = tl.trans(_load(dz, rows, cols, n, width))
        h = _input(x, x_gamma, x_beta, rows, ks, n, inputs)
        total = tl.dot(d, h, total, input_precision=PRECISION)
    _store(dw, total, cols, ks, width, inputs)


# ---- kernels: what they read, what they write, sizes, numbers -------------


def _plan(
    reads: Sequence[Tensor | None],
    writes: Sequence[Tensor],
    sizes: Sequence[int],
    weights: bool = False,
) -> Plan:
    """Plan for ``sizes[:2]``, and for weights ``(sizes[2], sizes[1])``."""
    n, width, outputs = sizes
    rows, columns = max(16, 1 << (n - 1).bit_length()), BLOCK['COLS']
    # The shared memory of a smaller card holds no more.
    step = BLOCK['K'] // (2 if rows > 128 else 1)
    programs = -(-width // columns)  # triton.cdiv takes microseconds
    if weights:
        programs += -(-outputs // columns) * -(-width // step)
    return (programs, 1, 1), (rows, columns, step), 8 if rows > 128 else 4


@kernel(_plan)
def hidden_forward(
    x, weight, mean, var, normed,
    n, hidden, inputs, factor, eps, momentum,
    FUNCTION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The first Linear, of the sums over the pixels, and its norm."""
    rows = tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    _linear_norm(
        x, None, None, weight, mean, var, normed, rows, cols,
        n, inputs, hidden, factor, eps, momentum, K,
    )  # fmt: skip


@kernel(_plan)
def output_forward(
    x, x_gamma, x_beta, weight, gamma, beta, scale,
    mean, var, normed, out,
    n, outputs, hidden, offset, eps, momentum,
    FUNCTION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """ReLU, the second Linear, its norm, the gating function and lambda."""
    rows = tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    weights, biases = _row(gamma, cols, outputs), _row(beta, cols, outputs)
    z = _linear_norm(
        x, x_gamma, x_beta, weight, mean, var, normed, rows, cols,
        n, hidden, outputs, 1.0, eps, momentum, K,
    )  # fmt: skip
    z = weights * z + biases + offset
    value, _ = _gating(z, FUNCTION)
    if scale is not None:
        value *= _row(scale, cols, outputs)
    _store(out, value, rows, cols, n, outputs)


@kernel(_plan)
def output_backward(
    douts, normed, gamma, beta, scale, dz, dvectors,
    n, outputs, parts, offset,
    FUNCTION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Back to the second Linear's output.

    ``douts`` are parts of a sum, ``dvectors`` the gradients of gamma, beta
    and lambda.
    """
    rows = tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    z = _load(normed, rows, cols, n, outputs)
    z = _row(gamma, cols, outputs) * z + _row(beta, cols, outputs) + offset
    value, slope = _gating(z, FUNCTION)
    dy = tl.zeros((ROWS, COLS), tl.float32)
    for part in range(parts):
        dy += _load(douts + part * n * outputs, rows, cols, n, outputs)
    if scale is not None:
        dscale = tl.sum(dy * value, 0)
        at = dvectors + 2 * outputs + cols
        tl.store(at, dscale, mask=cols < outputs)
        dy *= _row(scale, cols, outputs)
    dy *= slope
    d = _norm_backward(dy, normed, gamma, dvectors, rows, cols, n, outputs)
    _store(dz, d, rows, cols, n, outputs)


@kernel(partial(_plan, weights=True))
def hidden_backward(
    dnext, next_weight, normed, gamma, beta, dz, dnext_weight, dvectors,
    n, hidden, outputs, factor,
    FUNCTION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Back to the second Linear's weights and the first one's output.

    The weights' gradient comes in tiles of programs of their own.
    """
    programs = tl.cdiv(hidden, COLS)
    if tl.program_id(0) >= programs:
        _weight_backward(
            dnext, normed, gamma, beta, dnext_weight,
            tl.program_id(0) - programs, n, hidden, outputs,
            min(ROWS, K), COLS, K,
        )  # fmt: skip
    else:
        rows = tl.arange(0, ROWS)
        cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
        dy = _product(dnext, next_weight, rows, cols, n, outputs, hidden, K)
        h = _input(normed, gamma, beta, rows, cols, n, hidden)
        dy = tl.where(h > 0, dy, 0.0)
        d = _norm_backward(dy, normed, gamma, dvectors, rows, cols, n, hidden)
        _store(dz, d * factor, rows, cols, n, hidden)


@kernel(partial(_plan, weights=True))
def input_backward(
    dz, weight, x, dweight, dx, n, inputs, hidden,
    FUNCTION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Back to the first Linear's weights and the pixels.

    ``dx = dz W_1`` is in the type of ``dx``.
    """
    programs = tl.cdiv(inputs, COLS)
    if tl.program_id(0) >= programs:
        _weight_backward(
            dz, x, None, None, dweight, tl.program_id(0) - programs,
            n, inputs, hidden, min(ROWS, K), COLS, K,
        )  # fmt: skip
    else:
        rows = tl.arange(0, ROWS)
        cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
        d = _product(dz, weight, rows, cols, n, hidden, inputs, K)
        _store(dx, d, rows, cols, n, inputs)
