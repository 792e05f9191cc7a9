"""Batch normalisation of few values a channel.

The pooled input of a gate and the last level of SSDLite have one value an
image. Normalised by its own statistics, a channel of two values is their sign:
slopes in the hundreds, which the gates of a network multiply, to gradients of
1e15 for two images. A single value has no variance at all.
"""

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from sb_mm.registry import MODELS

# Fewer values a channel are normalised with the running statistics.
MIN_VALUES = 8


def _recomputing() -> bool:
    """Tell whether this is checkpointing's second pass over a batch."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1  # within a backward pass


class _FewValuesMixin:
    """A batch norm that first learns, then uses, its running statistics.

    In training on fewer than ``MIN_VALUES`` values a channel. They are
    constants in the backward pass, as in evaluation.
    """

    @property
    def learns(self) -> bool:
        """Whether it updates its statistics by its momentum."""
        tracking = self.track_running_stats and self.momentum is not None
        return self.training and tracking

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``(N, C, ...)``."""
        if not self.learns or self._values(x) >= MIN_VALUES:
            return super().forward(x)
        mean, var = self.running_mean, self.running_var
        if not _recomputing():
            mean, var = self._learn(x.detach().to(mean.dtype))
        return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)

    def _values(self, x: Tensor) -> int:
        return x.numel() // x.size(1)

    def _learn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Update and return the statistics, in tensors of their own."""
        # The variance around the running mean: a single value has one, and
        # it grows where the mean lags behind.
        pixels = [d for d in range(x.dim()) if d != 1]
        var, mean = torch.var_mean(x, pixels, correction=0)
        var = var + (mean - self.running_mean).square()
        mean, var = self._synchronised(mean, var)
        mean = self.running_mean.lerp(mean, self.momentum)
        var = self.running_var.lerp(var, self.momentum)
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        return mean, var

    def _synchronised(self, *moments: Tensor) -> tuple[Tensor, ...]:
        return moments


class GateBatchNorm1d(_FewValuesMixin, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` of a gate, on ``(N, C)``, that counts no batches.

    The count costs a call on the device; only ``momentum=None`` reads it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``(N, C)``."""
        if not self.learns or self._values(x) < MIN_VALUES:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            True, self.momentum, self.eps,
        )  # fmt: skip


@MODELS.register_module()
class LevelBatchNorm2d(_FewValuesMixin, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` of a feature level, on ``(N, C, H, W)``."""


class GateSyncBatchNorm(_FewValuesMixin, nn.SyncBatchNorm):
    """``nn.SyncBatchNorm`` of a gate: counts the values of all processes.

    They are to hold equally many, as MMEngine's samplers deal them.
    """

    def _values(self, x: Tensor) -> int:
        return super()._values(x) * get_world_size(self.process_group)

    def _synchronised(self, *moments: Tensor) -> tuple[Tensor, ...]:
        for moment in moments:
            all_reduce(moment, 'mean', self.process_group)
        return moments
