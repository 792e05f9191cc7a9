"""Global average pooling and dropout in front of a classifier."""

from torch import Tensor, nn

from sb_mm.arguments import check_number
from sb_mm.registry import MODELS


@MODELS.register_module()
class AveragePoolDropout(nn.Module):
    """mmpretrain's ``GlobalAveragePooling``, then dropout.

    As torchvision's MobileNetV2 and MnasNet have it before their classifier.

    Args:
        dropout: Probability of dropping a channel.

    Raises:
        ValueError: If ``dropout`` is out of its range.
    """

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        check_number('dropout', dropout, 0, 1, open_high=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Map features ``(N, C, H, W)`` to vectors ``(N, C)``."""
        return tuple(self.dropout(x.mean((2, 3))) for x in inputs)
