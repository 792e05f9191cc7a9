"""The gate F that Squeeze-and-Excite, Shift-and-Balance and DyConv share."""

import torch
from torch import Tensor, nn

from .batch_norm import GateBatchNorm1d
from .global_average import global_average


class ChannelGate(nn.Module):
    r"""Channel logits from the globally pooled input of a layer.

    .. math:: F(x) = BN(W_2\, \delta(BN(W_1\, GAP(x))))

    with :math:`\delta` = ReLU, ``fc1`` = :math:`W_1`, ``fc2`` = :math:`W_2`
    (Eq. 2 and 7 of arXiv:2103.13080). The attention that owns the gate applies
    the gating function.

    Args:
        in_channels: Channels of the pooled input.
        hidden_channels: Hidden units.
        out_channels: Number of logits.
        dropout: Probability of dropping a hidden unit (Table 7).
        bias: Whether the two Linear layers have a bias.
        norm: Whether there is the batch normalisation; without it, the
            Linear layers always have a bias.

    Note:
        Computes in the type of its parameters, float32 under autocast: the
        pooled sums and the statistics of ``(N, C)`` tensors are too small a
        part of the work to be worth the loss of precision.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        dropout: float = 0.0,
        bias: bool = False,
        norm: bool = True,
    ) -> None:
        super().__init__()
        bias = bias or not norm
        self.fc1 = nn.Linear(in_channels, hidden_channels, bias=bias)
        self.bn1 = GateBatchNorm1d(hidden_channels) if norm else nn.Identity()
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc2 = nn.Linear(hidden_channels, out_channels, bias=bias)
        self.bn2 = GateBatchNorm1d(out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape ``(N, Cin, H, W)`` to logits ``(N, Cout)``."""
        with torch.autocast(x.device.type, enabled=False):
            pooled = global_average(x, self.fc1.weight.dtype)
            hidden = self.relu(self.bn1(self.fc1(pooled)))
            return self.bn2(self.fc2(self.dropout(hidden)))
