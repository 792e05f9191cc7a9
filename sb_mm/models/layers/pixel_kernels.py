r"""The Triton kernels that apply the gates of a layer to its pixels.

One pass over the pixels forward, :math:`y = a(T + s)` or :math:`a(T s)` with
the activation :math:`a`, and one backward, which also sums over the pixels for
the gradient of :math:`s`.
"""
# ruff: noqa: ANN001, ANN201, ANN202 (a kernel's arguments have no types)

from collections.abc import Sequence
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Plan, kernel, launch

# Pixels and channels of a tile: with channels_last, or contiguous pixels.
TILES = {True: (64, 32), False: (256, 8)}
WARPS = 4
# The sums over the pixels are split until so many programs run, but not into
# more parts, which another kernel adds.
PROGRAMS, MAX_PARTS = 1024, 16


def forward(
    trunk: Tensor, gates: Tensor, function: str, bounds: Sequence[float]
) -> Tensor:
    """Return ``trunk + gates`` or ``trunk * gates``, clamped.

    Args:
        trunk: ``(N, C, H, W)``, dense in one of the two layouts.
        gates: ``(N, C)``, float32.
        function: ``'add'`` or ``'mul'``.
        bounds: The lowest and the highest value.
    """
    out = torch.empty_like(trunk)
    n, channels, height, width = trunk.shape
    sizes = n, channels, height * width, 1
    launch('pixels_forward', (trunk, gates), (out,), sizes, bounds, function)
    return out


def backward(
    dout: Tensor,
    saved: Tensor,
    gates: Tensor | None,
    function: str,
    bounds: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the trunk and, in parts, of the gates.

    Args:
        dout: The gradient of the result, in the layout of ``saved``.
        saved: The result of ``'add'``, the trunk of ``'mul'``.
        gates: Those of ``'mul'``.
        function: See :func:`forward`.
        bounds: See :func:`forward`.

    Returns:
        ``(N, C, H, W)``; ``(parts, N, C)``, float32, to be added.
    """
    n, channels, height, width = saved.shape
    size, columns = TILES[is_channels_last(saved)]
    tiles = -(-height * width // size)
    programs = n * -(-channels // columns)
    steps = -(-tiles // min(tiles, MAX_PARTS, -(-PROGRAMS // programs)))
    parts = -(-tiles // steps)
    dtrunk = torch.empty_like(saved)
    sums = torch.empty(parts, n, channels, device=saved.device)
    launch(
        'pixels_backward', (dout, saved, gates), (dtrunk, sums),
        (n, channels, height * width, steps), bounds, function,
    )  # fmt: skip
    return dtrunk, sums


def is_channels_last(x: Tensor) -> bool:
    """Tell whether the channels of a pixel lie side by side."""
    return x.is_contiguous(memory_format=torch.channels_last)


def _plan(
    reads: Sequence[Tensor | None],
    writes: Sequence[Tensor],
    sizes: Sequence[int],
) -> Plan:
    """Plan tiles; a vector is what divides every start in a tile."""
    n, channels, pixels, steps = sizes
    last = is_channels_last(reads[0])
    size, columns = TILES[last]
    addresses = gcd(*[t.data_ptr() for t in (*reads[:2], writes[0])])
    vector = gcd(8, channels if last else pixels) if addresses % 16 == 0 else 1
    grid = -(-channels // columns), -(-pixels // (size * steps)), n
    return grid, (last, vector, size, columns), WARPS


@triton.jit
def _start(x, channels, pixels, VECTOR: tl.constexpr):
    """Return where the program's image starts."""
    x += tl.program_id(2).to(tl.int64) * channels * pixels
    return x if VECTOR == 1 else tl.multiple_of(x, 16)


@triton.jit
def _at(start, cols, channels, pixels, LAST: tl.constexpr, SIZE: tl.constexpr):
    """Return where a tile of an image lies, and what of it is inside."""
    rows = start + tl.arange(0, SIZE)
    inside = (rows[:, None] < pixels) & (cols[None, :] < channels)
    if LAST:
        at = rows[:, None] * channels + cols[None, :]
    else:
        at = cols[None, :] * pixels + rows[:, None]
    return at, inside


@triton.jit
def _gate(gates, cols, channels):
    at = tl.program_id(2) * channels + cols
    return tl.load(gates + at, mask=cols < channels, other=0.0)[None, :]


@kernel(_plan)
def pixels_forward(
    trunk, gates, out, n, channels, pixels, steps, low, high,
    FUNCTION: tl.constexpr, LAST: tl.constexpr, VECTOR: tl.constexpr,
    SIZE: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Apply the gates and the activation."""
    if LAST:  # the compiler sees the multiple
        channels = channels // VECTOR * VECTOR
    else:
        pixels = pixels // VECTOR * VECTOR
    trunk = _start(trunk, channels, pixels, VECTOR)
    out = _start(out, channels, pixels, VECTOR)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    start = tl.program_id(1) * SIZE
    at, inside = _at(start, cols, channels, pixels, LAST, SIZE)
    gate = _gate(gates, cols, channels)
    y = tl.load(trunk + at, mask=inside, other=0.0).to(tl.float32)
    y = y * gate if FUNCTION == 'mul' else y + gate
    y = tl.where(y <= low, low, y)  # NaN stays
    y = tl.where(y >= high, high, y)
    tl.store(out + at, y, mask=inside)


@kernel(_plan)
def pixels_backward(
    dout, saved, gates, dtrunk, sums, n, channels, pixels, steps, low, high,
    FUNCTION: tl.constexpr, LAST: tl.constexpr, VECTOR: tl.constexpr,
    SIZE: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Back through the activation and the gates; sum over some tiles."""
    if LAST:
        channels = channels // VECTOR * VECTOR
    else:
        pixels = pixels // VECTOR * VECTOR
    dout = _start(dout, channels, pixels, VECTOR)
    saved = _start(saved, channels, pixels, VECTOR)
    dtrunk = _start(dtrunk, channels, pixels, VECTOR)
    part, parts = tl.program_id(1), tl.num_programs(1)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    if FUNCTION == 'mul':
        gate = _gate(gates, cols, channels)
    total = tl.zeros((SIZE, COLS), tl.float32)
    for step in range(steps):
        start = (part + step * parts) * SIZE
        at, inside = _at(start, cols, channels, pixels, LAST, SIZE)
        dy = tl.load(dout + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(saved + at, mask=inside, other=0.0).to(tl.float32)
        y = x * gate if FUNCTION == 'mul' else x
        dy = tl.where((y <= low) | (y >= high), 0.0, dy)
        total += dy * x if FUNCTION == 'mul' else dy
        dtrunk_tile = dy * gate if FUNCTION == 'mul' else dy
        tl.store(dtrunk + at, dtrunk_tile, mask=inside)
    at = (part * n + tl.program_id(2)) * channels + cols
    tl.store(sums + at, tl.sum(total, 0), mask=cols < channels)
