"""Dynamic convolution (DyConv)."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from mmengine.model import kaiming_init
from torch import Tensor, nn

from sb_mm.arguments import check_number
from sb_mm.registry import MODELS

from .attention import ChannelGate

# What mmcv's ConvModule, and extra_repr, read of a convolution.
_GEOMETRY = (
    *('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding'),
    *('dilation', 'groups', 'transposed', 'output_padding', 'padding_mode'),
)


@MODELS.register_module()
class DynamicConv2d(nn.Module):
    r"""Convolve each sample with its own mixture of ``K`` kernels.

    .. math:: y = (\textstyle\sum_k \pi_k(x) W_k) * x, \quad
              \pi(x) = \mathrm{softmax}(F(x) / \tau)

    *Dynamic Convolution: Attention over Convolution Kernels*
    (arXiv:1912.03458), as compared with in arXiv:2103.13080: :math:`W` is
    ``weight`` of shape ``(K * Cout, Cin / groups, kh, kw)``, :math:`F` is
    ``gate`` with ``Cin // reduction`` hidden units and biases, :math:`\tau`
    is the buffer ``temperature``, saved with the weights so that an annealed
    one is restored.

    A drop-in for ``conv_cfg=dict(type='sb_mm.DynamicConv2d')`` of any mmcv
    ``ConvModule``. The weights of a plain convolution load into it: every
    kernel becomes a copy, and the output is the plain convolution's.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation,
            groups: See ``nn.Conv2d``.
        bias: Whether each kernel has a bias; the paper's have none.
        num_kernels: :math:`K`.
        temperature: :math:`\tau`; large values mix the kernels evenly.
        reduction: What the input channels are divided by in the gate.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        num_kernels: int = 4,
        temperature: float = 30.0,
        reduction: int = 4,
    ) -> None:
        super().__init__()
        check_number('num_kernels', num_kernels, 1, integer=True)
        check_number('temperature', temperature, 0, open_low=True)
        check_number('reduction', reduction, 1, integer=True)
        # A kernel is such a convolution, which checks the arguments.
        kernel = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation,
            groups, device='meta',
        )  # fmt: skip
        for name in _GEOMETRY:
            setattr(self, name, getattr(kernel, name))
        self.num_kernels = num_kernels
        # The kernels lie along the first axis, as a fifth one would stop
        # `model.to(memory_format=torch.channels_last)`.
        bank = num_kernels * out_channels
        self.weight = nn.Parameter(
            torch.empty(bank, in_channels // groups, *self.kernel_size)
        )
        self.bias = nn.Parameter(torch.empty(bank)) if bias else None
        self.register_buffer('temperature', torch.tensor(float(temperature)))
        hidden = max(1, in_channels // reduction)
        self.gate = ChannelGate(in_channels, hidden, num_kernels, bias=True)
        self.init_weights()
        # MMEngine asks no more: the network's init_cfg stands.
        self.is_init = True

    def init_weights(self) -> None:
        """Draw each kernel as mmcv draws a convolution's: He, fan-out."""
        for kernel in self._kernels():
            kaiming_init(kernel)

    def apply(self, fn: Callable[[nn.Module], None]) -> 'DynamicConv2d':
        """Call ``fn`` (an ``init_cfg``'s) on all parts and on each kernel."""
        super().apply(fn)
        for kernel in self._kernels():
            fn(kernel)
        return self

    def _kernels(self) -> Iterator[nn.Conv2d]:
        """Yield convolutions whose weights are views of the banks."""
        for k in range(self.num_kernels):
            kernel = nn.Conv2d(
                self.in_channels, self.out_channels, self.kernel_size,
                groups=self.groups, bias=False, device='meta',
            )  # fmt: skip
            for name, bank in self.named_parameters(recurse=False):
                part = bank.data.chunk(self.num_kernels)[k]
                setattr(kernel, name, nn.Parameter(part))
            yield kernel

    def attention(self, x: Tensor) -> Tensor:
        """Return the shares ``(N, K)`` of the kernels, which sum to 1."""
        return (self.gate(x) / self.temperature).softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape ``(N, Cin, H, W)``."""
        if x.size(0) == 0:  # as a plain convolution does
            kernel = self.weight[: self.out_channels]
            return self._conv2d(x, kernel, self.groups)
        shares = self.attention(x)
        y = self._convolve(x, self._mix(shares, self.weight))
        if self.bias is None:
            return y
        return y + self._mix(shares, self.bias).to(y.dtype)[:, :, None, None]

    def _mix(self, shares: Tensor, bank: Tensor) -> Tensor:
        """Return ``(N, Cout, ...)``: a sample's mixture of the kernels."""
        with torch.autocast(shares.device.type, enabled=False):
            kernels = bank.reshape(self.num_kernels, -1)
            mixed = shares.to(bank.dtype) @ kernels
        return mixed.view(-1, self.out_channels, *bank.shape[1:])

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        # A (1, 1) kernel without padding is one matrix product a sample.
        one = self.kernel_size == (1, 1) and self.groups == 1
        if one and self.padding == (0, 0):
            return self._pointwise(x, weight.flatten(2))
        return self._grouped(x, weight)

    def _pointwise(self, x: Tensor, weight: Tensor) -> Tensor:
        # Before striding, behind which neither layout is contiguous.
        channels_last = _is_channels_last(x)
        x = x[:, :, :: self.stride[0], :: self.stride[1]]
        if not channels_last:
            return torch.bmm(weight, x.flatten(2)).unflatten(2, x.shape[2:])
        # The pixels' rows are contiguous: multiply from the other side, and
        # the result is channels_last without a copy.
        rows = x.permute(0, 2, 3, 1).flatten(1, 2)
        y = torch.bmm(rows, weight.transpose(1, 2))
        return y.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)

    def _grouped(self, x: Tensor, weight: Tensor) -> Tensor:
        # One convolution for the whole batch: a sample is a group of its own.
        n, c, h, w = x.shape
        y = self._conv2d(
            x.reshape(1, n * c, h, w), weight.flatten(0, 1), n * self.groups
        )
        y = y.view(n, self.out_channels, *y.shape[2:])
        if _is_channels_last(x):
            return y.contiguous(memory_format=torch.channels_last)
        return y

    def _conv2d(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        geometry = self.stride, self.padding, self.dilation
        return F.conv2d(x, weight, None, *geometry, groups)

    def plain_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a plain convolution's weights, which load."""
        banks = self.named_parameters(recurse=False)
        return {n: (self.out_channels, *b.shape[1:]) for n, b in banks}

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args
    ) -> None:
        """Accept a plain convolution's weights: copy them to every kernel."""
        for name, shape in self.plain_shapes().items():
            plain = state_dict.get(prefix + name)
            if plain is not None and tuple(plain.shape) == shape:
                copies = torch.cat([plain] * self.num_kernels)
                state_dict[prefix + name] = copies
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Describe the convolution in ``print(model)``."""
        plain = nn.Conv2d.extra_repr(self)
        return f'{plain}, num_kernels={self.num_kernels}'


def _is_channels_last(x: Tensor) -> bool:
    # Also half of the channels of such a tensor, which is not contiguous.
    return x.stride(1) == 1 and not x.is_contiguous()
