"""What the tests of the backbones share: the networks, settled weights."""

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from sb_mm import models

NETWORKS = {
    'mobilenet': (models.AttentionMobileNetV2, 0.1),
    'cifar': (models.AttentionMobileNetV2CIFAR, 0.1),
    'mnasnet': (models.AttentionMnasNet, 0.1),
    'shufflenet': (models.AttentionShuffleNetV2, 0.5),
}
KINDS = {
    'static': {},
    'sb': dict(attention=dict(type='sb_mm.ShiftBalance')),
    'se': dict(attention=dict(type='sb_mm.SqueezeExcite')),
    'dyconv': dict(attention_conv_cfg=dict(type='sb_mm.DynamicConv2d')),
}


@pytest.fixture(params=list(NETWORKS))
def network(request):
    return request.param


@pytest.fixture(params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture
def build():
    """Build a narrow network of a kind of attention."""

    def make(network, kind='static', **kwargs):
        torch.manual_seed(0)
        backbone, width = NETWORKS[network]
        return backbone(**{'widen_factor': width, **KINDS[kind], **kwargs})

    return make


@pytest.fixture
def short(monkeypatch):
    """Leave stages 0 and 1 and the last convolution; few blocks of Shuffle."""
    for backbone, _ in NETWORKS.values():
        if backbone is models.AttentionShuffleNetV2:
            monkeypatch.setattr(backbone, 'stage_blocks', (2, 1, 1))
        else:
            two = backbone.arch_settings[:2]
            monkeypatch.setattr(backbone, 'arch_settings', two)


@pytest.fixture
def taps(network):
    """Return what to take out of any network, the short ones included."""
    if network == 'shufflenet':
        return dict(out_indices=(0, 2, 3))
    first = () if network != 'cifar' else (0,)
    return dict(out_indices=(1, 2), expand_indices=(*first, 1))


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


@pytest.fixture
def images():
    return _images


@pytest.fixture
def settle():
    return _settle
