"""DyConv: matrix products against the grouped convolutions of others."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from timm.layers import CondConv2d
from torch import Tensor, nn

from sb_mm.models.layers import DynamicConv2d

from .measure import Pair, Row, Settings, compare, in_turns, peak_memory
from .networks import DYCONV, build

OURS, GROUPED, TIMM = 'sb_mm', 'grouped convolution', 'timm CondConv2d'
# How much slower others are to be where matrices are multiplied.
_TARGETS = dict(pointwise=round(1 / 1.8, 3), depthwise=1)
Layers = list[tuple[nn.Module, Tensor]]


class GroupedDynamicConv2d(nn.Module):
    """The form that most implementations of DyConv have.

    An image is a group of one convolution over the whole batch. The gate is
    ours: only the convolution is another.

    Args:
        conv: Whose weights to take.
    """

    def __init__(self, conv: DynamicConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape ``(N, Cin, H, W)``."""
        conv, n = self.conv, x.size(0)
        bank = conv.weight.view(conv.num_kernels, -1)
        y = F.conv2d(
            x.view(1, -1, *x.shape[2:]),
            (conv.attention(x) @ bank).view(-1, *conv.weight.shape[1:]),
            stride=conv.stride,
            padding=conv.padding,
            groups=n * conv.groups,
        )
        return y.view(n, -1, *y.shape[2:])


class TimmDynamicConv2d(nn.Module):
    """timm's CondConv2d with our gate.

    Args:
        conv: Whose weights to take.
    """

    def __init__(self, conv: DynamicConv2d) -> None:
        super().__init__()
        self.attention = conv.attention
        self.gate = conv.gate  # for its parameters
        self.conv = CondConv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            conv.stride[0],
            conv.padding[0],
            groups=conv.groups,
            num_experts=conv.num_kernels,
        )
        bank = conv.weight.data.view(conv.num_kernels, -1)
        self.conv.weight = nn.Parameter(bank)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape ``(N, Cin, H, W)``."""
        return self.conv(x, self.attention(x))


_FORMS: dict[str, Callable[[DynamicConv2d], nn.Module]] = {
    OURS: lambda conv: conv,
    GROUPED: GroupedDynamicConv2d,
    TIMM: TimmDynamicConv2d,
}


def dynamic_conv(settings: Settings) -> Iterator[Row]:
    """Time forward and backward of all DyConv layers of MobileNetV2."""
    for width in (0.5,) if settings.tiny else (0.5, 1.0):
        for kind, target in _TARGETS.items():
            passes = _passes(kind, width, settings)
            pairs = [Pair(OURS, name, target) for name in (GROUPED, TIMM)]
            what = f'DyConv {kind} layers x{width}, forward and backward'
            yield from in_turns(what, passes, pairs, settings)


def dynamic_conv_memory(settings: Settings) -> Iterator[Row]:
    """Measure the most memory of one of those passes."""
    passes = _passes('pointwise', 1.0, settings)
    peaks = {
        name: [peak_memory(call, settings.device)]
        for name, call in passes.items()
    }
    pairs = [Pair(OURS, name, 1) for name in (GROUPED, TIMM)]
    what = 'memory of the DyConv pointwise layers x1.0'
    yield from compare(what, 'MiB', peaks, pairs)


def _passes(
    kind: str, width: float, settings: Settings
) -> dict[str, Callable[[], None]]:
    """Return forward and backward of all layers of a kind, in each form."""
    layers = _layers(kind, width, settings)
    passes = {}
    for name, form in _FORMS.items():
        formed = [(form(conv), x) for conv, x in layers]
        _check_equal(layers, formed)
        passes[name] = _forward_backward(formed)
    return passes


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
    for conv, _ in layers:
        conv._forward_pre_hooks.clear()
    return layers


def _forward_backward(layers: Layers) -> Callable[[], None]:
    def run() -> None:
        for layer, x in layers:
            y = layer(x)
            torch.autograd.grad(y, [x, *layer.parameters()], y.detach())

    return run


@torch.no_grad()
def _check_equal(layers: Layers, formed: Layers) -> None:
    """Raise unless the forms compute the same: else times mean nothing."""
    for (conv, x), (layer, _) in zip(layers, formed, strict=True):
        expected = conv(x)
        limit = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=limit)
