"""What Squeeze-and-Excite and Shift-and-Balance have in common."""

from collections.abc import Callable

from torch import Tensor, nn

from sb_mm.arguments import check_number

from .gate import ChannelGate


class ChannelAttention(nn.Module):
    """Base of the attentions that act on a layer's output channel by channel.

    ``forward(trunk, x)`` takes the layer's output ``trunk`` of shape
    ``(N, Cout, H', W')`` and its input ``x`` of shape ``(N, Cin, H, W)``; the
    result has the shape of ``trunk``. A subclass defines its two halves,
    :meth:`channel_values` of ``x`` and :meth:`combine` of these with
    ``trunk``, so that a layer can compute the first before its convolution.

    The gate has ``out_channels`` hidden units, or
    ``out_channels // depthwise_reduction`` behind a depthwise convolution,
    times ``hidden_multiplier`` (Table 10 of arXiv:2103.13080). A subclass sets
    ``gate_function``, which maps the gate's logits to what is applied.

    Args:
        in_channels: Channels of the layer's input.
        out_channels: Channels of the layer's output.
        depthwise: Whether the layer is a depthwise convolution.
        depthwise_reduction: What the hidden units of a depthwise layer are
            divided by.
        hidden_multiplier: Factor on the hidden units.
        dropout: Probability of dropping a hidden unit of the gate.
        gate_norm: Whether the gate has batch normalisation, as in the paper;
            without it, its Linear layers have a bias.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        depthwise: bool = False,
        depthwise_reduction: int = 6,
        hidden_multiplier: float = 1,
        dropout: float = 0.0,
        gate_norm: bool = True,
    ) -> None:
        super().__init__()
        check_number('in_channels', in_channels, 1, integer=True)
        check_number('out_channels', out_channels, 1, integer=True)
        check_number(
            'depthwise_reduction', depthwise_reduction, 1, integer=True
        )
        check_number('hidden_multiplier', hidden_multiplier, 0, open_low=True)
        check_number('dropout', dropout, 0, 1, open_high=True)
        reduction = depthwise_reduction if depthwise else 1
        hidden = max(1, int(out_channels // reduction * hidden_multiplier))
        self.gate = ChannelGate(
            in_channels, hidden, out_channels, dropout, norm=gate_norm
        )
        self.gate_function: Callable[[Tensor], Tensor]

    def channel_values(self, x: Tensor) -> Tensor:
        """Return what is applied to the channels, ``(N, Cout)``."""
        return self.gate_function(self.gate(x))

    def combine(self, trunk: Tensor, values: Tensor) -> Tensor:
        """Apply the ``values`` to ``trunk``."""
        raise NotImplementedError

    def forward(
        self, trunk: Tensor, x: Tensor, values: Tensor | None = None
    ) -> Tensor:
        """Return ``trunk`` changed as ``x`` demands.

        Args:
            trunk: Output of the layer.
            x: Input of the layer.
            values: The :meth:`channel_values` of ``x``, if known.
        """
        if values is None:
            values = self.channel_values(x)
        return self.combine(trunk, values)


class NoAttention(nn.Module):
    """Stands where a layer has no attention, so that it needs no branch."""

    def forward(self, trunk: Tensor, x: Tensor) -> Tensor:
        """Return ``trunk``."""
        return trunk


def over_pixels(values: Tensor, trunk: Tensor) -> Tensor:
    """Shape ``(N, C)`` values for broadcasting over ``(N, C, H, W)``.

    The type becomes the trunk's, so that a float32 gate does not widen a
    network that runs in half precision.
    """
    return values.to(trunk.dtype)[:, :, None, None]
