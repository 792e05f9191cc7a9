"""DyConv: matrix products against grouped convolutions."""

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from sb_mm.models.layers import DynamicConv2d

from .measurement import Measurement, Settings, memory_in_turns, take_turns
from .networks import installed

OURS = 'sb_mm'
GROUPED = 'grouped convolution'
TIMM = 'timm CondConv2d'
# Without gate and mixing of kernels: what is left if those cost nothing.
ALONE = 'sb_mm, the convolution alone'
GROUPED_ALONE = 'grouped convolution alone'
TOLERANCE = 1e-5  # of the outputs, relative to the largest
Shape = tuple[int, int, int, int, int]


class GroupedDynamicConv2d(nn.Module):
    """The form that most implementations of DyConv have.

    A sample is a group of one convolution over the whole batch. The gate is
    ours: only the convolution is another.

    Args:
        conv: Whose weights to take.
    """

    def __init__(self, conv: DynamicConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape ``(N, Cin, H, W)``."""
        return convolve_grouped(self.conv, x, mixed_kernels(self.conv, x))


def mixed_kernels(conv: DynamicConv2d, x: Tensor) -> Tensor:
    """Return ``(N * Cout, Cin / groups, kh, kw)``: each sample's kernels."""
    bank = conv.weight.view(conv.num_kernels, -1)
    weight = torch.mm(conv.attention(x), bank)
    return weight.view(-1, *conv.weight.shape[1:])


def convolve_grouped(
    conv: DynamicConv2d, x: Tensor, kernels: Tensor
) -> Tensor:
    """Convolve ``(N, Cin, H, W)``, a sample being a group."""
    n = x.size(0)
    y = F.conv2d(
        x.view(1, -1, *x.shape[2:]),
        kernels,
        stride=conv.stride,
        padding=conv.padding,
        groups=n * conv.groups,
    )
    return y.view(n, -1, *y.shape[2:])


def convolve_ours(conv: DynamicConv2d, x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve ``(N, Cin, H, W)`` as sb_mm does."""
    return conv._convolve(x, kernels.unflatten(0, (x.size(0), -1)))


class ConvolutionAlone(nn.Module):
    """The convolution with kernels that are there, each sample its own.

    Args:
        conv: Whose kernels to mix, once.
        images: For which; the only input that it takes.
        convolve: How to convolve.
    """

    def __init__(
        self,
        conv: DynamicConv2d,
        images: Tensor,
        convolve: Callable[[DynamicConv2d, Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__()
        with torch.no_grad():
            self.kernels = nn.Parameter(mixed_kernels(conv, images))
        self._convolve = lambda x: convolve(conv, x, self.kernels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape ``(N, Cin, H, W)``."""
        return self._convolve(x)


class TimmDynamicConv2d(nn.Module):
    """timm's CondConv2d with our gate: only the convolution is another.

    Args:
        conv: Whose weights to take.
    """

    def __init__(self, conv: DynamicConv2d) -> None:
        super().__init__()
        from timm.layers import CondConv2d

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
        self.conv.weight.data = bank.clone()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape ``(N, Cin, H, W)``."""
        return self.conv(x, self.attention(x))


def dynamic_conv(settings: Settings) -> Iterator[Measurement]:
    """Measure forward and backward of each convolution of MobileNetV2."""
    batch = 2 if settings.tiny else 32
    for width in (0.5,) if settings.tiny else (0.5, 1.0):
        for shape in _shapes(width, 64 if settings.tiny else 224):
            images = torch.randn(
                batch, shape[0], shape[2], shape[2], requires_grad=True
            )
            forms = _forms(shape, images, settings)
            _check_equal(forms, images)
            passes = {k: forward_backward(f, images) for k, f in forms.items()}
            case = dict(width=width, **_case(shape), batch=batch)
            yield from take_turns(case, passes, settings.rounds)


def _case(shape: Shape) -> dict:
    inputs, outputs, size, groups, stride = shape
    return dict(
        kind='pointwise' if groups == 1 else 'depthwise',
        inputs=inputs,
        outputs=outputs,
        size=size,
        stride=stride,
    )


def dynamic_conv_memory(settings: Settings) -> Iterator[Measurement]:
    """Measure the peak of memory of one pass over all pointwise ones."""
    batch, size = (2, 64) if settings.tiny else (32, 224)
    case = dict(width=1.0, kind='pointwise', batch=batch, size=size)
    names = [OURS, GROUPED]
    if installed('timm', settings.notes):
        names.append(TIMM)
    contenders = {name: (all_pointwise, name, batch, size) for name in names}
    yield from memory_in_turns(case, contenders, min(3, settings.rounds))


def all_pointwise(name: str, batch: int, size: int) -> Callable[[], None]:
    """Return what passes through every pointwise DyConv of MobileNetV2."""
    shapes = [s for s in _shapes(1.0, size) if s[3] == 1]

    def run() -> None:
        for shape in shapes:
            form = _FORMS[name](_conv(shape))
            images = torch.randn(batch, shape[0], shape[2], shape[2])
            forward_backward(form, images.requires_grad_())()

    return run


def forward_backward(module: nn.Module, images: Tensor) -> Callable[[], None]:
    """Return what computes the outputs and all gradients."""
    with torch.no_grad():
        gradient = torch.ones_like(module(images))
    inputs = [images, *module.parameters()]

    def run() -> None:
        torch.autograd.grad(module(images), inputs, gradient)

    return run


def _shapes(width: float, size: int) -> list[Shape]:
    """Return the different (inputs, outputs, pixels, groups, stride)."""
    network = MODELS.build(
        dict(type='sb_mm.DyConvMobileNetV2', widen_factor=width)
    ).eval()
    shapes = []

    def note(conv: DynamicConv2d, args: tuple[Tensor]) -> None:
        shapes.append(
            (
                conv.in_channels,
                conv.out_channels,
                args[0].shape[2],
                conv.groups,
                conv.stride[0],
            )
        )

    for module in network.modules():
        if isinstance(module, DynamicConv2d):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    return list(dict.fromkeys(shapes))


def _conv(shape: Shape) -> DynamicConv2d:
    inputs, outputs, _, groups, stride = shape
    torch.manual_seed(0)
    kernel = 1 if groups == 1 else 3
    return DynamicConv2d(
        inputs, outputs, kernel, stride, kernel // 2, groups=groups
    )


_FORMS = {
    OURS: lambda conv: conv,
    GROUPED: GroupedDynamicConv2d,
    TIMM: TimmDynamicConv2d,
}


def _forms(
    shape: Shape, images: Tensor, settings: Settings
) -> dict[str, nn.Module]:
    conv = _conv(shape)
    forms = {OURS: conv, GROUPED: GroupedDynamicConv2d(copy.deepcopy(conv))}
    if installed('timm', settings.notes):
        forms[TIMM] = TimmDynamicConv2d(copy.deepcopy(conv))
    forms[ALONE] = ConvolutionAlone(conv, images, convolve_ours)
    if shape[3] == 1:  # ours of depthwise kernels is the grouped one itself
        forms[GROUPED_ALONE] = ConvolutionAlone(conv, images, convolve_grouped)
    return forms


@torch.no_grad()
def _check_equal(forms: dict[str, nn.Module], images: Tensor) -> None:
    expected = forms[OURS](images)
    for name, form in forms.items():
        worst = (form(images) - expected).abs().max() / expected.abs().max()
        if not worst <= TOLERANCE:
            raise RuntimeError(
                f'{name} differs by {worst:.1e} of the largest output: they '
                'do not compute the same, so their times mean nothing.'
            )
