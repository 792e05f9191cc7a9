"""Global average pooling whose gradient costs no tensor of its own."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class _GlobalAverage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return x.mean((2, 3), dtype=dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        height, width = ctx.shape[2:]
        share = (grad / (height * width)).to(ctx.dtype)
        return share[:, :, None, None].expand(ctx.shape), None


def global_average(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Average ``(N, C, H, W)`` over the pixels, to ``(N, C)``.

    The same as ``x.mean((2, 3), dtype=dtype)``. PyTorch's gradient of that is
    a full-size contiguous tensor, whatever the memory format of ``x``: it has
    to be written, and if ``x`` is channels_last, it drags every gradient that
    is added to it into the other format, in which batch normalisation is
    several times slower. This one is an expanded view of ``(N, C)`` numbers,
    which autograd adds to the gradient of the convolution in place.
    """
    if torch.compiler.is_compiling():
        # A compiler does the same by itself, and does not cache what has
        # functions of one's own.
        return x.mean((2, 3), dtype=dtype)
    return _GlobalAverage.apply(x, dtype)
