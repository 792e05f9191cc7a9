"""Squeeze-and-Excite."""

import math

import torch
from torch import Tensor

from sb_mm.arguments import check_number
from sb_mm.registry import MODELS

from .channel_attention import ChannelAttention, over_pixels


@MODELS.register_module()
class SqueezeExcite(ChannelAttention):
    r"""Scale each channel of a layer's output by a gate in (0, 1).

    .. math:: y = T(x) \cdot \mathrm{sigmoid}(F(x))

    Eq. 1-2 of *Shift-and-Balance Attention* (arXiv:2103.13080), after
    *Squeeze-and-Excitation Networks* (arXiv:1709.01507), with the gate
    :class:`~sb_mm.models.layers.gate.ChannelGate` for :math:`F`. At the
    output of a block, pass the block's output as both arguments.

    Args:
        in_channels: Channels of the layer's input.
        out_channels: Channels of the layer's output.
        gate_offset: Added to the logits: 0 lets the gates start around 1/2,
            as in the papers, 4 around 0.98, which is almost the network
            without attention.
        **kwargs: See
            :class:`~sb_mm.models.layers.channel_attention.ChannelAttention`.

    Raises:
        ValueError: If an argument is out of its range.

    Note:
        Unlike the original, the gate has batch normalisation and, in
        pointwise layers, no bottleneck: the parameter counts of the paper
        hold for this form only.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        gate_offset: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(in_channels, out_channels, **kwargs)
        check_number('gate_offset', gate_offset, -math.inf)
        self.gate_offset = gate_offset
        # The addition would cost a call in each layer.
        self.gate_function = self._shifted if gate_offset else torch.sigmoid

    def _shifted(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits + self.gate_offset)

    def combine(self, trunk: Tensor, values: Tensor) -> Tensor:
        """Scale ``trunk`` of shape ``(N, Cout, H', W')``."""
        return trunk * over_pixels(values, trunk)
