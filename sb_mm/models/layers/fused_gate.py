"""The gate and its gating function in four Triton kernels."""

from collections.abc import Callable

import torch
import triton  # noqa: F401
from torch import Tensor, nn


def applies(gate: nn.Module, x: Tensor) -> bool:
    """Tell whether the kernels can compute a gate of ``x``."""
    return False


def fused_gate(
    gate: nn.Module,
    x: Tensor,
    function: Callable[[Tensor], Tensor],
    scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return ``scale * function(gate(x))``, of shape ``(N, Cout)``."""
    raise NotImplementedError
