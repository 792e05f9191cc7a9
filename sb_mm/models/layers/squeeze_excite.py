"""Squeeze-and-Excite."""

import torch
from torch import Tensor

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

    See :class:`~sb_mm.models.layers.channel_attention.ChannelAttention` for
    the arguments.

    Note:
        Unlike the original, the gate has batch normalisation and, in
        pointwise layers, no bottleneck: the parameter counts of the paper
        hold for this form only.
    """

    def __init__(self, in_channels: int, out_channels: int, **kwargs) -> None:
        super().__init__(in_channels, out_channels, **kwargs)
        self.gate_function = torch.sigmoid

    def combine(self, trunk: Tensor, values: Tensor) -> Tensor:
        """Scale ``trunk`` of shape ``(N, Cout, H', W')``."""
        return trunk * over_pixels(values, trunk)
