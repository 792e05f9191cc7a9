"""Shift-and-Balance attention, the method of the paper."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from sb_mm.arguments import check_choice, check_number
from sb_mm.registry import MODELS

from .channel_attention import ChannelAttention, over_pixels


def _ungated(logits: Tensor) -> Tensor:
    return logits


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    'tanh': torch.tanh,
    'sigmoid': torch.sigmoid,
    'softmax': partial(torch.softmax, dim=1),
    'relu': torch.relu,
    'none': _ungated,
}


@MODELS.register_module()
class ShiftBalance(ChannelAttention):
    r"""Shift each channel of a layer's output by a learned, gated amount.

    .. math:: y = T(x) + \lambda \cdot \tanh(F(x))

    Eq. 6-7 of *Shift-and-Balance Attention* (arXiv:2103.13080):
    :math:`F` is ``gate``, :math:`\lambda` is ``lambda_``, learned per channel.
    The shift lies in :math:`[-\lambda, \lambda]` and balances against the
    trunk instead of scaling it.

    Args:
        in_channels: Channels of the layer's input.
        out_channels: Channels of the layer's output.
        lambda_init: Start value of lambda (Table 8).
        gate: Gating function (Table 9): ``'tanh'``, ``'sigmoid'``,
            ``'softmax'`` (over the channels), ``'relu'`` or ``'none'``.
        **kwargs: See
            :class:`~sb_mm.models.layers.channel_attention.ChannelAttention`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        lambda_init: float = 0.1,  # Sec. 4.2
        gate: str = 'tanh',
        **kwargs,
    ) -> None:
        check_number('lambda_init', lambda_init, 0)
        check_choice('gate', gate, GATES)
        super().__init__(in_channels, out_channels, **kwargs)
        self.lambda_ = nn.Parameter(
            torch.full((out_channels,), float(lambda_init))
        )
        self.gate_function = GATES[gate]

    def channel_values(self, x: Tensor) -> Tensor:
        """Return the shift of every channel, ``(N, Cout)``."""
        return self.lambda_ * super().channel_values(x)

    def combine(self, trunk: Tensor, values: Tensor) -> Tensor:
        """Shift ``trunk`` of shape ``(N, Cout, H', W')``."""
        return trunk + over_pixels(values, trunk)
