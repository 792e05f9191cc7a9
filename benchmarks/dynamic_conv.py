"""DyConv: matrix products against the grouped convolutions of others."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sb_mm.models.layers import DynamicConv2d

from .measure import Pair, Rows, Settings, in_turns
from .training import DYCONV, build

OURS, GROUPED = 'sb_mm', 'grouped convolution'
Layers = list[tuple[DynamicConv2d, Tensor]]


def grouped(conv: DynamicConv2d, x: Tensor) -> Tensor:
    """Convolve as most do, timm's ``CondConv2d`` too: an image is a group."""
    bank, n = conv.weight.view(conv.num_kernels, -1), x.size(0)
    y = F.conv2d(
        x.view(1, -1, *x.shape[2:]),
        (conv.attention(x) @ bank).view(-1, *conv.weight.shape[1:]),
        stride=conv.stride,
        padding=conv.padding,
        groups=n * conv.groups,
    )
    return y.view(n, -1, *y.shape[2:])


def dynamic_conv(settings: Settings) -> Rows:
    """Time forward and backward of MobileNetV2's pointwise DyConv layers.

    Others are to be that much slower, as we multiply matrices there.
    """
    width = 0.35 if settings.tiny else 1.0
    layers = _pointwise_layers(width, settings)
    passes = {
        OURS: _forward_backward(layers, lambda conv, x: conv(x)),
        GROUPED: _forward_backward(layers, grouped),
    }
    what = f'DyConv pointwise layers x{width}, forward and backward'
    pairs = [Pair(OURS, GROUPED, 0.556)]
    return in_turns(what, passes, pairs, settings)


def _pointwise_layers(width: float, settings: Settings) -> Layers:
    """Return the layers of the network, each with its input."""
    batch, size = (8, 64) if settings.tiny else (32, 224)
    network = build(DYCONV, width).to(settings.device).train()
    layers = []

    def note(conv: DynamicConv2d, args: tuple[Tensor], y: Tensor) -> None:
        x = args[0].clone()
        # Unless both are equal, times mean nothing.
        limit = 1e-5 * y.abs().max().item()
        torch.testing.assert_close(grouped(conv, x), y, rtol=0, atol=limit)
        layers.append((conv, x.requires_grad_()))

    handles = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, DynamicConv2d) and module.groups == 1
    ]
    with torch.no_grad():
        network(torch.randn(batch, 3, size, size, device=settings.device))
    for handle in handles:
        handle.remove()
    return layers


def _forward_backward(layers: Layers, form: Callable) -> Callable[[], None]:
    def run() -> None:
        for conv, x in layers:
            y = form(conv, x)
            torch.autograd.grad(y, [x, *conv.parameters()], y.detach())

    return run
