"""Global average pooling and dropout in front of a classifier."""

from torch import Tensor, nn

from sb_mm.registry import MODELS


@MODELS.register_module()
class AveragePoolDropout(nn.Module):
    """Pool and drop as torchvision's MobileNetV2 and MnasNet do at their end.

    Args:
        dropout: Probability of dropping a channel.
    """

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Map features ``(N, C, H, W)`` to vectors ``(N, C)``."""
        return tuple(self.dropout(x.mean((2, 3))) for x in inputs)
