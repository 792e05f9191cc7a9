"""What a network costs: parameters and multiply-adds.

PyTorch's ``FlopCounterMode`` counts a multiply-add as 2, in the operators that
a forward pass runs: convolutions and matrix products, among them the Linear
layers of the gates and the mixture of a dynamic convolution's kernels.
Normalisation, pooling and activations are not counted.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from sb_mm.engine.build import build_model

from .cells import Cell


class Cost(NamedTuple):
    """Learnable numbers of a network, and what it computes for one image."""

    parameters: int
    multiply_adds: int


@cache
@torch.no_grad()
def count(cell: Cell) -> Cost:
    """Count a cell's network for one image ``(1, 3, size, size)``."""
    network, size = build_model(cell.resolve()).eval(), cell.spec.image_size
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size))
    parameters = sum(p.numel() for p in network.parameters())
    return Cost(parameters, counter.get_total_flops() // 2)
