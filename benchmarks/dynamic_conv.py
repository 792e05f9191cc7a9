"""DyConv: matrix products against the grouped convolutions of others."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sb_mm.models.layers import DynamicConv2d

from .measure import Pair, Rows, Settings, compare, in_turns, peak_memory
from .networks import DYCONV, build

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
    """Measure forward and backward of all DyConv layers of MobileNetV2.

    Others are to be that much slower where matrices are multiplied.
    """
    for width in (0.5,) if settings.tiny else (0.5, 1.0):
        for kind, target in dict(pointwise=1 / 1.8, depthwise=1).items():
            layers = _layers(kind, width, settings)
            passes = {
                OURS: _forward_backward(layers, lambda conv, x: conv(x)),
                GROUPED: _forward_backward(layers, grouped),
            }
            pairs = [Pair(OURS, GROUPED, round(target, 3))]
            what = f'DyConv {kind} layers x{width}, forward and backward'
            yield from in_turns(what, passes, pairs, settings)
            peaks = {
                name: [peak_memory(call, settings.device)]
                for name, call in passes.items()
            }
            pairs = [Pair(OURS, GROUPED, 1)]
            yield from compare(f'memory of {what}', 'MiB', peaks, pairs)


def _layers(kind: str, width: float, settings: Settings) -> Layers:
    """Return the layers of the network, each with its input."""
    batch, size = (8, 64) if settings.tiny else (32, 224)
    network = build(DYCONV, width).to(settings.device).train()
    layers = []

    def note(conv: DynamicConv2d, args: tuple[Tensor]) -> None:
        if (conv.groups == 1) == (kind == 'pointwise'):
            layers.append((conv, args[0].clone().requires_grad_()))

    for module in network.modules():
        if isinstance(module, DynamicConv2d):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        network(torch.randn(batch, 3, size, size, device=settings.device))
    for conv, x in layers:
        conv._forward_pre_hooks.clear()
        with torch.no_grad():  # unless both are equal, times mean nothing
            y = conv(x)
            limit = 1e-5 * y.abs().max().item()
            torch.testing.assert_close(grouped(conv, x), y, rtol=0, atol=limit)
    return layers


def _forward_backward(layers: Layers, form: Callable) -> Callable[[], None]:
    def run() -> None:
        for conv, x in layers:
            y = form(conv, x)
            torch.autograd.grad(y, [x, *conv.parameters()], y.detach())

    return run
