"""What the tests of the backbones share: settled weights, their counts."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def _images(n=2, size=32, seed=1):
    torch.manual_seed(seed)
    return torch.randn(n, 3, size, size)


def _settle(model, size=32):
    """Random norms and lambdas; statistics near those of random images.

    So no signal dies or explodes on the way, and the activations get values
    on both sides of their corners.
    """
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith('lambda_'):
            parameter.data.uniform_(0.5, 1)
        elif parameter.dim() == 1:
            centre = 1 if name.endswith('weight') else 0
            parameter.data.normal_(centre, 0.3)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(_images(8, size, seed=2))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        # A channel that is still would be scaled up without bounds.
        var = norm.running_var.clamp(min=norm.running_var.mean() / 4)
        norm.running_mean += 0.2 * var.sqrt() * torch.randn_like(var)
        norm.running_var.copy_(var * (0.5 + torch.rand_like(var)))
    model.eval()  # mmpretrain's returns nothing
    return model


def _watch_activations(model):
    """Collect the smallest and the largest input of each activation."""
    seen = []
    for part in model.modules():
        if isinstance(part, (nn.ReLU, nn.ReLU6)):
            part.register_forward_pre_hook(
                lambda _, args: seen.append(
                    (args[0].min().item(), args[0].max().item())
                )
            )
    return seen


@pytest.fixture
def images():
    return _images


@pytest.fixture
def settle():
    return _settle


@pytest.fixture
def watch_activations():
    return _watch_activations


@pytest.fixture
def is_printed():
    """Whether a count is the one that the paper prints in millions."""

    def check(count, printed):
        digits = len(printed.split('.')[1])
        return f'{count / 1e6:.{digits}f}' == printed

    return check
