"""conv -> norm -> attention(trunk, input) -> act."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from torch import nn

from sb_mm.models.layers import AttentionConvModule, NoAttention
from sb_mm.registry import MODELS

SB = dict(type='sb_mm.ShiftBalance', lambda_init=2.0)
BASE = dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU6'))
PLACES = pytest.mark.parametrize('place', ['conv', 'norm', 'act'])


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(4, 6, 5, 5) * 4


def build(randomise, **kwargs):
    module = AttentionConvModule(6, 8, 1, **{**BASE, **kwargs})
    return randomise(module).eval()


@PLACES
def test_attention_stands_where_it_is_asked_to(place, x, randomise):
    module = build(randomise, attention=SB, attention_after=place)
    before, norm = x.clone(), copy.deepcopy(module.bn)
    trunk = torch.einsum('oi,nihw->nohw', module.conv.weight[..., 0, 0], x)

    def attention(y):
        return module.attention(y, x)

    def act(y):
        # Both sides of ReLU6 and both of its corners.
        assert y.min() < 0
        assert y.max() > 6
        return y.clamp(0, 6)

    expected = {
        'conv': lambda: act(norm(attention(trunk))),
        'norm': lambda: act(attention(norm(trunk))),
        'act': lambda: attention(act(norm(trunk))),
    }[place]()
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)
    # Activations in place have left the input alone.
    assert x.equal(before)


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(act_cfg=None),
        dict(norm_cfg=None),
        dict(kernel_size=3, stride=2, padding=1, groups=2),
        dict(kernel_size=3, padding=1, padding_mode='reflect'),
    ],
    ids=repr,
)
@pytest.mark.parametrize('attention', [None, SB])
def test_without_a_shift_it_is_mmcvs_conv_module(
    attention, kwargs, x, randomise
):
    kwargs = {'kernel_size': 1, **BASE, **kwargs}
    ours = AttentionConvModule(6, 8, attention=attention, **kwargs)
    randomise(ours).eval()
    if attention:
        ours.attention.lambda_.data.zero_()
    else:
        assert isinstance(ours.attention, NoAttention)
    host = ConvModule(6, 8, **kwargs).eval()
    missing, extra = host.load_state_dict(ours.state_dict(), strict=False)
    assert missing == []
    assert all(k.startswith('attention.') for k in extra)
    for steps in ({}, dict(activate=False), dict(norm=False)):
        torch.testing.assert_close(ours(x, **steps), host(x, **steps))
    torch.testing.assert_close(ours(x, False, False), host(x, False, False))


@pytest.mark.parametrize(
    ('groups', 'kwargs', 'hidden'),
    [
        (12, {}, 2),  # depthwise: 12 // 6
        (12, dict(reduce_depthwise=False), 12),
        (1, {}, 12),
        (3, {}, 12),  # grouped is not depthwise
    ],
)
def test_the_attention_knows_a_depthwise_convolution(groups, kwargs, hidden):
    module = AttentionConvModule(
        12, 12, 3, groups=groups, attention=SB, **kwargs
    )
    assert module.attention.gate.fc1.weight.shape == (hidden, 12)
    one = AttentionConvModule(1, 6, 3, attention=SB)
    assert one.attention.gate.fc1.out_features == 6


def test_an_attention_of_ones_own_is_built_and_called(x, randomise):
    class Mine(nn.Module):
        def __init__(self, in_channels, out_channels, depthwise, mine):
            super().__init__()
            self.arguments = in_channels, out_channels, depthwise, mine

        def forward(self, trunk, x):
            return trunk + x.mean()

    MODELS.register_module('MineOfThisTest', force=True, module=Mine)
    cfg = dict(type='sb_mm.MineOfThisTest', mine=3)
    module = build(randomise, attention=cfg)
    assert module.attention.arguments == (6, 8, False, 3)
    assert cfg == dict(type='sb_mm.MineOfThisTest', mine=3)
    expected = (module.bn(module.conv(x)) + x.mean()).clamp(0, 6)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize('batch', [2, 9])
def test_two_passes_before_one_backward_and_its_gradient(batch, randomise):
    module = build(randomise, attention=SB).train()
    xs = [torch.randn(batch, 6, 5, 5).requires_grad_() for _ in 'ab']
    loss = sum(module(x).square().mean() for x in xs)
    (grad,) = torch.autograd.grad(loss, xs[0], create_graph=True)
    grad.square().sum().backward()
    assert xs[0].grad.abs().sum() > 0


@PLACES
@pytest.mark.parametrize('conv', ['Conv2d', 'sb_mm.DynamicConv2d'])
def test_mmcvs_fusion_changes_no_output(conv, place, x, randomise):
    places = dict(attention_after=place, conv_cfg=dict(type=conv))
    module = build(randomise, attention=SB, **places)
    expected = module(x)
    network = fuse_conv_bn(nn.Sequential(module))
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


def test_arguments_without_a_place_are_refused():
    with pytest.raises(ValueError, match="'conv', 'norm', 'act', but got"):
        AttentionConvModule(6, 8, 1, attention_after='bn')
    for name in ('order', 'efficient_conv_bn_eval'):
        with pytest.raises(ValueError, match=name):
            AttentionConvModule(6, 8, 1, **{name: ('act', 'conv', 'norm')})
