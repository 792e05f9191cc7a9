"""The block of ShuffleNetV2."""

from itertools import combinations

import pytest
import torch
from sb_mm.models.backbones.blocks import interleave

from sb_mm.models.layers import ShiftBalance
from sb_mm.models.backbones.blocks import ShuffleBlock

LAYERS = ('expand', 'depthwise', 'project')
SB = dict(type='sb_mm.ShiftBalance')
STRIDES = pytest.mark.parametrize('stride', [1, 2])


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(3, 8, 6, 6)


def build(randomise, stride, **kwargs):
    out_channels = 8 if stride == 1 else 12
    block = ShuffleBlock(8, out_channels, stride, **kwargs)
    return randomise(block, 0.5).eval()


def test_channels_of_two_features_alternate():
    first = torch.arange(6.0).view(1, 3, 1, 2)
    out = interleave(first, -first)
    assert out.flatten().tolist() == [0, 1, 0, -1, 2, 3, -2, -3, 4, 5, -4, -5]
    assert out.shape == (1, 6, 1, 2)


@STRIDES
def test_the_branches_are_joined_and_shuffled(stride, x, randomise):
    block = build(randomise, stride)
    if stride == 1:
        first, second = x[:, :4], x[:, 4:]
        assert not hasattr(block, 'branch1')
    else:
        first, second = block.branch1(x), x
    second = block.branch2(second)
    out = block(x)
    assert out.shape == ((3, 8, 6, 6) if stride == 1 else (3, 12, 3, 3))
    # Two groups, channel by channel.
    for i in range(out.size(1) // 2):
        assert out[:, 2 * i].equal(first[:, i])
        assert out[:, 2 * i + 1].equal(second[:, i])


@STRIDES
def test_the_static_block_computes_what_mmpretrain_s_does(
    stride, x, randomise
):
    pytest.importorskip('mmpretrain.models')
    from mmpretrain.models.backbones.shufflenet_v2 import InvertedResidual

    block = build(randomise, stride)
    host = InvertedResidual(8, 8 if stride == 1 else 12, stride).eval()
    host.load_state_dict(block.state_dict())
    torch.testing.assert_close(block(x), host(x))


def test_pointwise_layers_are_activated_and_depthwise_ones_are_not(
    x, randomise
):
    block = build(randomise, 2)
    for branch, activated in (
        (block.branch1, (False, True)),
        (block.branch2, (True, False, True)),
    ):
        y = x
        for layer, expected in zip(branch, activated, strict=True):
            y = layer(y)
            assert (y.min() == 0) == expected


def test_the_activation_is_relu(x, randomise):
    block = build(randomise, 1)
    expand = block.branch2[0]
    trunk = expand.bn(expand.conv(x[:, 4:] * 99))
    assert trunk.min() < 0
    assert trunk.max() > 6
    torch.testing.assert_close(expand(x[:, 4:] * 99), trunk.clamp(min=0))


SUBSETS = [c for n in (1, 2, 3) for c in combinations(LAYERS, n)]


@STRIDES
@pytest.mark.parametrize('layers', SUBSETS, ids='+'.join)
def test_attention_sits_only_in_the_layers_asked_for(stride, layers):
    out_channels = 8 if stride == 1 else 12
    block = ShuffleBlock(
        8, out_channels, stride, attention=SB, attention_layers=layers
    )
    places = {
        'expand': {'branch2.0'},
        'depthwise': {'branch1.0', 'branch2.1'},
        'project': {'branch1.1', 'branch2.2'},
    }
    expected = set().union(*(places[layer] for layer in layers))
    if stride == 1:
        expected = {name for name in expected if 'branch2' in name}
    found = {
        name.removesuffix('.attention')
        for name, part in block.named_modules()
        if isinstance(part, ShiftBalance)
    }
    assert found == expected


def test_the_attended_convolutions_only_are_the_given_kind():
    block = ShuffleBlock(
        8,
        12,
        2,
        attention_conv_cfg=dict(type='sb_mm.DynamicConv2d'),
        attention_layers=('expand', 'depthwise'),
    )
    kinds = [
        [type(layer.conv).__name__ for layer in branch]
        for branch in (block.branch1, block.branch2)
    ]
    assert kinds == [
        ['DynamicConv2d', 'Conv2d'],
        ['DynamicConv2d', 'DynamicConv2d', 'Conv2d'],
    ]


def test_a_depthwise_layer_has_as_many_hidden_units_as_channels():
    block = ShuffleBlock(8, 12, 2, attention=SB)
    for layer, channels in (
        (block.branch1[0], (8, 8)),
        (block.branch1[1], (6, 8)),
        (block.branch2[0], (6, 8)),
        (block.branch2[1], (6, 6)),
        (block.branch2[2], (6, 6)),
    ):
        # (hidden, in)
        assert layer.attention.gate.fc1.weight.shape == channels


@STRIDES
def test_lambda_zero_is_the_static_block(stride, x, randomise):
    block = build(randomise, stride, attention=SB)
    plain = build(randomise, stride)
    missing, extra = plain.load_state_dict(block.state_dict(), strict=False)
    assert missing == []
    assert all('.attention.' in name for name in extra)
    assert not torch.allclose(block(x), plain(x))
    for name, parameter in block.named_parameters():
        if name.endswith('lambda_'):
            parameter.data.zero_()
    assert block(x).equal(plain(x))


@pytest.mark.parametrize(
    ('stride', 'attention', 'count'),
    [
        # 4 * 4 + 9 * 4 + 4 * 4 convolutions, 2 * (4 + 4 + 4) BN
        (1, None, 92),
        # branch 1: 9 * 8 + 8 * 6, 2 * (8 + 6) = 148;
        # branch 2: 8 * 6 + 9 * 6 + 6 * 6, 2 * (6 + 6 + 6) = 174
        (2, None, 322),
        # 3 gates of 2 * 4 * 4 + 2 * (4 + 4), and lambda of 4 = 52
        (1, SB, 92 + 3 * 52),
    ],
)
def test_the_block_has_exactly_its_parameters(
    stride, attention, count, parameter_count
):
    out_channels = 8 if stride == 1 else 12
    block = ShuffleBlock(8, out_channels, stride, attention=attention)
    assert parameter_count(block) == count


@STRIDES
@pytest.mark.parametrize('with_cp', [False, True])
def test_every_parameter_gets_a_gradient(
    stride, with_cp, x, randomise, all_gradients
):
    block = build(randomise, stride, attention=SB, with_cp=with_cp).train()
    out = block(x.requires_grad_())
    (out * torch.randn_like(out)).sum().backward()
    assert all_gradients(block) == []
    # Every channel reaches the output.
    assert (x.grad.abs().sum((0, 2, 3)) > 0).all()


@STRIDES
def test_checkpointing_recomputes_the_same(stride, x, randomise):
    outs, grads, calls = [], [], []
    for with_cp in (False, True):
        block = build(randomise, stride, attention=SB, with_cp=with_cp).train()
        block.branch2[1].register_forward_hook(
            lambda *_, with_cp=with_cp: calls.append(with_cp)
        )
        inputs = x.clone().requires_grad_()
        outs.append(block(inputs))
        outs[-1].square().mean().backward()
        grads.append([inputs.grad, *(p.grad for p in block.parameters())])
    torch.testing.assert_close(outs[1], outs[0])
    torch.testing.assert_close(grads[1], grads[0])
    assert calls == [False, True, True]


@STRIDES
def test_channels_last_stays_channels_last(
    stride, x, randomise, is_channels_last
):
    block = build(randomise, stride, attention=SB)
    expected = block(x)
    block = block.to(memory_format=torch.channels_last)
    out = block(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert is_channels_last(out)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(stride=3), 'stride must be one of 1, 2'),
        (dict(out_channels=9, stride=2), 'out_channels must be even.* 9 and'),
        (dict(out_channels=10), 'equal to in_channels, but got 10 and 8'),
        (dict(attention_layers=('block',)), "'depthwise', 'project', but got"),
        (dict(attention_layers=()), 'attention_layers must be a non-empty'),
        (dict(attention_after='bn'), "'conv', 'norm', 'act'"),
    ],
    ids=repr,
)
def test_arguments_out_of_range_name_what_is_allowed(kwargs, message):
    base = dict(in_channels=8, out_channels=8, stride=1)
    with pytest.raises(ValueError, match=message):
        ShuffleBlock(**{**base, **kwargs})
