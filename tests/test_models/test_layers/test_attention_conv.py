"""conv -> norm -> attention(trunk, input) -> act."""

import pytest
import torch
from mmcv.cnn import ConvModule

from sb_mm.models.layers import (
    AttentionConvModule,
    NoAttention,
    ShiftBalance,
    SqueezeExcite,
)

SB = dict(type='sb_mm.ShiftBalance', lambda_init=2.0)
BASE = dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU6'))


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(4, 6, 5, 5) * 4


def build(randomise, **kwargs):
    module = AttentionConvModule(6, 8, 1, **{**BASE, **kwargs})
    return randomise(module).eval()


def steps(module, x):
    """Return conv, norm and activation as functions, one by one."""
    bn = module.bn

    def norm(y):
        shape = (1, -1, 1, 1)
        y = (y - bn.running_mean.view(shape)) / (
            bn.running_var.view(shape) + bn.eps
        ) ** 0.5
        return y * bn.weight.view(shape) + bn.bias.view(shape)

    def act(y):
        # Both sides of ReLU6 and both of its corners.
        assert y.min() < 0
        assert y.max() > 6
        return y.clamp(0, 6)

    return norm, (lambda y: module.attention(y, x)), act


@pytest.mark.parametrize('place', ['conv', 'norm', 'act'])
def test_attention_stands_where_it_is_asked_to(place, x, randomise):
    module = build(randomise, attention=SB, attention_after=place)
    norm, attention, act = steps(module, x)
    trunk = torch.einsum('oi,nihw->nohw', module.conv.weight[..., 0, 0], x)
    expected = {
        'conv': lambda: act(norm(attention(trunk))),
        'norm': lambda: act(attention(norm(trunk))),
        'act': lambda: attention(act(norm(trunk))),
    }[place]()
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


def test_attention_stands_behind_the_norm_by_default(x, randomise):
    default = build(randomise, attention=SB)
    explicit = build(randomise, attention=SB, attention_after='norm')
    assert default(x).equal(explicit(x))


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(act_cfg=None),
        dict(norm_cfg=None),
        dict(norm_cfg=None, act_cfg=None),
        dict(kernel_size=3, stride=2, padding=1, groups=2),
        dict(kernel_size=3, padding=1, padding_mode='reflect'),
    ],
    ids=repr,
)
def test_without_attention_it_is_mmcvs_conv_module(kwargs, x, randomise):
    kwargs = {'kernel_size': 1, **BASE, **kwargs}
    ours = AttentionConvModule(6, 8, **kwargs)
    host = ConvModule(6, 8, **kwargs)
    assert isinstance(ours.attention, NoAttention)
    state = randomise(ours).eval().state_dict()
    host.eval().load_state_dict(state)
    torch.testing.assert_close(ours(x), host(x))


def test_an_order_that_it_does_not_follow_is_not_silently_ignored():
    with pytest.raises((TypeError, ValueError), match='order'):
        AttentionConvModule(6, 8, 1, order=('act', 'conv', 'norm'))


def test_lambda_zero_is_mmcvs_conv_module(x, randomise):
    ours = build(randomise, attention=SB)
    ours.attention.lambda_.data.zero_()
    host = ConvModule(6, 8, 1, **BASE).eval()
    missing, extra = host.load_state_dict(ours.state_dict(), strict=False)
    assert missing == []
    assert all(k.startswith('attention.') for k in extra)
    torch.testing.assert_close(ours(x), host(x))


@pytest.mark.parametrize(
    ('groups', 'hidden'),
    [
        (12, 2),  # depthwise: 12 // 6
        (1, 12),
        (3, 12),  # grouped is not depthwise
    ],
)
def test_the_attention_knows_a_depthwise_convolution(groups, hidden):
    module = AttentionConvModule(12, 12, 3, groups=groups, attention=SB)
    assert isinstance(module.attention, ShiftBalance)
    assert module.attention.gate.fc1.weight.shape == (hidden, 12)


@pytest.mark.parametrize(
    ('groups', 'kwargs', 'hidden'),
    [
        (12, {}, 2),  # depthwise: 12 // 6
        (12, dict(reduce_depthwise=True), 2),
        (12, dict(reduce_depthwise=False), 12),
        (1, dict(reduce_depthwise=True), 12),
        (1, dict(reduce_depthwise=False), 12),
    ],
)
def test_the_gate_of_a_depthwise_convolution_may_be_a_full_one(
    groups, kwargs, hidden
):
    module = AttentionConvModule(
        12, 12, 3, groups=groups, attention=SB, **kwargs
    )
    assert module.attention.gate.fc1.weight.shape == (hidden, 12)


def test_the_only_channel_of_a_convolution_is_no_depthwise_one():
    module = AttentionConvModule(1, 6, 3, attention=SB)
    assert module.attention.gate.fc1.out_features == 6


def test_the_attention_config_keeps_its_own_arguments():
    cfg = dict(type='sb_mm.SqueezeExcite', hidden_multiplier=2)
    module = AttentionConvModule(6, 8, 1, attention=cfg)
    assert isinstance(module.attention, SqueezeExcite)
    assert module.attention.gate.fc1.weight.shape == (16, 6)
    assert cfg == dict(type='sb_mm.SqueezeExcite', hidden_multiplier=2)


def test_the_module_has_exactly_its_parameters(parameter_count):
    module = AttentionConvModule(6, 8, 1, attention=SB, **BASE)
    # 6 * 8 conv, 2 * 8 BN, SB: 6 * 8 + 8 * 8 + 2 * (8 + 8) + 8
    assert parameter_count(module) == 48 + 16 + 152


def test_every_parameter_gets_a_gradient(x, randomise, all_gradients):
    module = build(randomise, attention=SB).train()
    out = module(x)
    (out * torch.randn_like(out)).sum().backward()
    assert all_gradients(module) == []


@pytest.mark.parametrize('place', ['conv', 'norm', 'act'])
def test_in_place_activations_leave_the_input_alone(place, x, randomise):
    module = build(randomise, attention=SB, attention_after=place)
    before = x.clone()
    module(x)
    assert x.equal(before)


@pytest.mark.parametrize('place', ['conv', 'norm', 'act'])
@pytest.mark.parametrize('kind', ['ShiftBalance', 'SqueezeExcite'])
def test_autocast_gives_the_type_that_the_trunk_alone_has(
    kind, place, x, randomise, gate_dtypes
):
    module = build(
        randomise, attention=dict(type=f'sb_mm.{kind}'), attention_after=place
    )
    plain = build(randomise)
    seen = gate_dtypes(module)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert module(x).dtype == plain(x).dtype == torch.bfloat16
    assert seen == {torch.float32}


@pytest.mark.parametrize('kind', ['ShiftBalance', 'SqueezeExcite'])
def test_the_module_keeps_channels_last(kind, x, randomise, is_channels_last):
    module = build(randomise, attention=dict(type=f'sb_mm.{kind}'))
    out = module(x.to(memory_format=torch.channels_last))
    assert is_channels_last(out)
    torch.testing.assert_close(out, module(x), rtol=1e-4, atol=1e-4)


def test_an_unknown_place_names_the_three():
    with pytest.raises(ValueError, match="'conv', 'norm', 'act', but got"):
        AttentionConvModule(6, 8, 1, attention_after='bn')
