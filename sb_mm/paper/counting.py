"""Parameters and multiply-adds of a network, and the overhead of attention.

MMEngine's ``FlopAnalyzer`` counts one multiply-add as 1, from the operators
that a forward pass runs. For these networks that is exact: a convolution is a
``conv`` operator, or, if it is dynamic and pointwise, a batched matrix product
(``bmm``); the Linear layers of gates and classifier are ``linear``; and the
mixture of a dynamic convolution's kernels is a ``matmul``. Normalisation,
pooling and activations are not counted.
"""

import warnings
from dataclasses import dataclass

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

# Pixels; the detector's as in Section 5.2.
INPUT_SIZES = {'imagenet': 224, 'cifar10': 32, 'voc0712': 300}


@dataclass(frozen=True)
class Cost:
    """Size and cost of a network.

    Attributes:
        parameters: Learnable numbers.
        convolution: Multiply-adds of the convolutions for one image.
        linear: Of the Linear layers, those of the gates among them.
        mixing: Of the mixtures of dynamic kernels.
    """

    parameters: int
    convolution: int
    linear: int
    mixing: int

    @property
    def multiply_adds(self) -> int:
        """All of them."""
        return self.convolution + self.linear + self.mixing


def build_network(cfg: Config) -> nn.Module:
    """Build the model of a config, with whatever weights."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model).eval()


def cost(model: nn.Module, size: int) -> Cost:
    """Count a network's parameters and multiply-adds.

    Args:
        model: Called with images ``(1, 3, size, size)``.
        size: Pixels.
    """
    images = torch.zeros(1, 3, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # tracing shapes with Python numbers
        counter = FlopAnalyzer(model, (images,))
        counter.unsupported_ops_warnings(False)
        counter.uncalled_modules_warnings(False)
        operators = counter.by_operator()
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        convolution=operators['conv'] + operators['bmm'],
        linear=operators['linear'] + operators['addmm'],
        mixing=operators['matmul'],
    )


@dataclass(frozen=True)
class Overhead:
    """What SB adds to a convolution, for one image."""

    multiplies: int
    adds: int


def overhead(
    in_channels: int,
    hidden_channels: int,
    out_channels: int,
    in_pixels: int,
    out_pixels: int,
) -> Overhead:
    """Return the overhead of SB in one layer, Eq. 10-17 of the paper.

    The sum of the paper's equations: global average pooling adds ``Cin * H *
    W`` numbers and multiplies by ``1 / (H * W)`` once a channel; the two
    Linear layers cost ``Cin * Chid`` and ``Chid * Cout`` of both; lambda
    multiplies ``Cout`` numbers, and the shift is added ``Cout * H' * W'``
    times.

    Args:
        in_channels: ``Cin``.
        hidden_channels: ``Chid``.
        out_channels: ``Cout``.
        in_pixels: ``H * W``.
        out_pixels: ``H' * W'``.
    """
    linear = hidden_channels * (in_channels + out_channels)
    return Overhead(
        multiplies=in_channels + linear + out_channels,
        adds=in_channels * in_pixels + linear + out_channels * out_pixels,
    )
