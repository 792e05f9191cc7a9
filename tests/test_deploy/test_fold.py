"""A folded network gives what it gave, without its norms."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from tiny_detector import trained
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sb_mm.deploy import fold
from sb_mm.errors import UserInputError
from sb_mm.models.layers import AttentionConvModule

ALL = ('expand', 'depthwise', 'project')
SB = dict(type='sb_mm.ShiftBalance')
SE = dict(type='sb_mm.SqueezeExcite')
BN = dict(type='BN')
NETWORKS = [
    ('AttentionMobileNetV2', {}),
    ('SBMobileNetV2', dict(dropout=0.2, gate='softmax')),
    ('SEMobileNetV2', dict(attention_layers=ALL)),
    ('AttentionMobileNetV2', dict(attention=dict(SE, gate_norm=False))),
    ('AttentionMobileNetV2', dict(attention=dict(SE, gate_offset=2.0))),
    ('DyConvMobileNetV2', {}),
    ('AttentionMobileNetV2CIFAR', dict(attention=SB)),
    ('AttentionMnasNet', dict(attention=SB)),
    ('AttentionShuffleNetV2', dict(attention=SB, widen_factor=0.5)),
]


def backbone(name, **kwargs):
    kwargs.setdefault('widen_factor', 0.35)
    return trained(MODELS.build(dict(type=f'sb_mm.{name}', **kwargs)))


def norms(model):
    left = (_BatchNorm, nn.Dropout)
    return [m for m in model.modules() if isinstance(m, left)]


@pytest.mark.parametrize(('name', 'kwargs'), NETWORKS)
@torch.no_grad()
def test_a_folded_backbone_gives_the_same_outputs(name, kwargs):
    model = backbone(name, **kwargs)
    folded = fold(copy.deepcopy(model)).to(memory_format=torch.channels_last)
    assert not norms(folded)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 64, 64)
        wanted = model(x)[-1]
        out = folded(x.contiguous(memory_format=torch.channels_last))[-1]
        scale = max(wanted.abs().max(), 1)
        assert (out - wanted).abs().max() <= 1e-4 * scale
        if 'Shuffle' not in name:
            assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('after', ['conv', 'norm', 'act'])
@pytest.mark.parametrize(
    'attention',
    [SE, *(dict(SB, gate=g) for g in ('tanh', 'sigmoid', 'relu', 'none'))],
)
@torch.no_grad()
def test_every_layer_folds(attention, after):
    layer = trained(
        AttentionConvModule(
            *(6, 5, 3),
            stride=2,
            attention=attention,
            attention_after=after,
            norm_cfg=BN,
        )
    )
    for batch in (1, 4):
        x = torch.randn(batch, 6, 9, 9)
        expected = layer(x)
        out = fold(copy.deepcopy(layer))(x)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_parts_of_other_packages_fold_and_other_norms_stay():
    model = trained(
        nn.Sequential(
            ConvModule(3, 4, 3, norm_cfg=BN, bias='auto'),
            nn.Conv2d(4, 5, 1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.BatchNorm2d(5),
            ConvModule(5, 5, 1, norm_cfg=BN, order=('norm', 'conv', 'act')),
            nn.Flatten(),
            nn.Linear(5 * 36, 7),
            nn.BatchNorm1d(7),
        )
    )
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    torch.testing.assert_close(fold(model)(x), expected, rtol=1e-4, atol=1e-5)
    assert norms(model) == [model[4], model[5].bn]


@torch.no_grad()
def test_a_folded_network_does_not_train_alone_or_as_a_part():
    model = backbone('SBMobileNetV2', frozen_stages=2).train()
    x = torch.randn(1, 3, 64, 64)
    expected = copy.deepcopy(model).eval()(x)[-1]
    model.switch_to_deploy()
    torch.testing.assert_close(model(x)[-1], expected, rtol=1e-4, atol=1e-4)
    gate = fold(trained(AttentionConvModule(6, 5, 1, attention=SE)))
    for network in (model, nn.Sequential(model), copy.deepcopy(model), gate):
        with pytest.raises(UserInputError, match='This network is folded'):
            network.train()


@pytest.mark.parametrize(
    'part', [nn.Dropout(), nn.ReLU(), nn.Sequential(nn.Dropout())]
)
def test_what_does_not_fold_is_refused(part):
    layer = AttentionConvModule(6, 5, 1, attention=SB, norm_cfg=BN)
    model = nn.Sequential(layer, part).eval()
    part.train()
    with pytest.raises(UserInputError, match=r'\(its 1 is\)'):
        fold(model)
    model.eval()
    model.training = True
    with pytest.raises(UserInputError, match='is in training mode: call'):
        fold(model)
    assert norms(model)
    fold(model.eval())
    for network in (model, nn.Sequential(model), nn.Conv2d(3, 4, 1)):
        with pytest.raises(UserInputError, match='nothing to fold'):
            fold(network.eval())
