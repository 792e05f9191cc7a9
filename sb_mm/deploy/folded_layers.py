"""What stands in a folded network instead of gates and shifts."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from sb_mm.errors import UserInputError

from ..models.layers import ChannelGate, ShiftBalance


class _FoldedMixin:
    """What is folded does not train."""

    def train(self, mode: bool = True) -> nn.Module:
        """Stay in evaluation mode.

        Raises:
            UserInputError: If ``mode`` is True.
        """
        if mode:
            raise UserInputError(
                'This network is folded, and its norms are constants: train '
                'one that is not folded.'
            )
        return super().train(mode)


class Folded(_FoldedMixin, nn.Identity):
    """Stands where a norm or dropout was."""


class FoldedGate(_FoldedMixin, nn.Module):
    """A :class:`~sb_mm.models.layers.ChannelGate` without its norms.

    Args:
        gate: The gate, in evaluation mode; it is not changed.
    """

    def __init__(self, gate: ChannelGate) -> None:
        super().__init__()
        self.fc1 = _with_norm(gate.fc1, gate.bn1)
        self.fc2 = _with_norm(gate.fc2, gate.bn2)
        self.fc2.bias += gate.offset

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape ``(N, Cin, H, W)`` to logits ``(N, Cout)``."""
        return self.fc2(F.relu(self.fc1(x.mean((2, 3)))))


def _with_norm(linear: nn.Linear, norm: nn.Module) -> nn.Linear:
    if isinstance(norm, nn.Identity):
        return copy.deepcopy(linear)
    return fuse_linear_bn_eval(linear, norm)


class ShiftedConv2d(nn.Module):
    r"""A convolution whose bias is shifted by what the attention says.

    .. math:: y = W * x + b + \lambda \cdot \tanh(F(x))

    The shift of one sample is a bias. A batch of one gets it inside of the
    convolution, at no cost over the output's pixels; in a larger batch the
    samples' biases differ, and it is added in place.

    Args:
        conv: The convolution; it gets a bias if it has none.
        attention: The attention, with a folded gate.
    """

    def __init__(self, conv: nn.Conv2d, attention: ShiftBalance) -> None:
        super().__init__()
        if conv.bias is None:
            zeros = conv.weight.new_zeros(conv.out_channels)
            conv.bias = nn.Parameter(zeros)
        self.conv = conv
        self.gate = attention.gate
        self.gate_function = attention.gate_function
        self.lambda_ = attention.lambda_

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape ``(N, Cin, H, W)``."""
        gates = self.gate_function(self.gate(x))
        if x.size(0) == 1:
            conv = self.conv
            bias = torch.addcmul(conv.bias, self.lambda_, gates[0])
            return conv._conv_forward(x, conv.weight, bias)
        return self.conv(x).add_((self.lambda_ * gates)[:, :, None, None])
