"""Batch normalisation that a single value per channel survives.

The variance of one value is undefined, and PyTorch refuses to compute it. The
last batch of an epoch can be a single image (16,551 VOC images leave one
at batch size 10, 25 or 50), and the pooled input of a gate as well as the last
level of SSDLite have one value an image. Such a batch is normalised with the
running statistics and does not change them.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sb_mm.registry import MODELS


class _OneValueMixin:
    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``(N, C, ...)``."""
        if not (self.training and x.numel() == x.size(1)):
            return super().forward(x)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=False,
            eps=self.eps,
        )


class GateBatchNorm1d(_OneValueMixin, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` of a gate, on ``(N, C)``."""


@MODELS.register_module()
class LevelBatchNorm2d(_OneValueMixin, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` of a feature level, on ``(N, C, H, W)``."""
