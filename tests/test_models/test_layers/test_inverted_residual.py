"""The block of MobileNetV2."""

import pytest
import torch

from sb_mm.models.layers import InvertedResidual

SB = dict(type='sb_mm.ShiftBalance')
SE = dict(type='sb_mm.SqueezeExcite')


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(3, 8, 6, 6)


def build(randomise, *args, **kwargs):
    return randomise(InvertedResidual(*args, **kwargs), 0.5).eval()


@pytest.mark.parametrize(
    ('out_channels', 'stride', 'added'),
    [(8, 1, True), (8, 2, False), (16, 1, False)],
)
def test_the_input_is_added_at_stride_1_and_equal_channels(
    out_channels, stride, added, x, randomise
):
    block = build(randomise, 8, out_channels, stride, 48)
    layers = x
    for layer in block.conv:
        layers = layer(layers)
    torch.testing.assert_close(block(x), layers + x if added else layers)
    assert layers.shape == (3, out_channels, 6 // stride, 6 // stride)


def test_the_block_attention_acts_before_the_addition(x, randomise):
    block = build(
        randomise, 8, 8, 1, 48, attention=SE, attention_layers=('block',)
    )
    y = block.conv(x)
    gates = block.attention.gate(y).sigmoid()[:, :, None, None]
    torch.testing.assert_close(block(x), x + y * gates)
    # hidden units: C
    assert block.attention.gate.fc1.weight.shape == (8, 8)


def test_expand_and_depthwise_are_activated_and_project_is_not(x, randomise):
    block = build(randomise, 8, 16, 1, 48)
    taps = [layer(x) for layer in block.conv[:1]]
    taps.append(block.conv[1](taps[0] * 20))
    for tap in taps:
        assert tap.min() == 0
    assert taps[1].max() == 6
    assert block(x).min() < 0


@pytest.mark.parametrize('layer', ['expand', 'depthwise', 'project'])
def test_attention_sits_only_in_the_layers_asked_for(layer):
    block = InvertedResidual(
        8, 8, 1, 48, attention=SB, attention_layers=(layer,)
    )
    owners = {k.split('.gate')[0] for k in block.state_dict() if 'gate' in k}
    index = ('expand', 'depthwise', 'project').index(layer)
    assert owners == {f'conv.{index}.attention'}


def test_a_block_without_expand_names_its_layers_right():
    block = InvertedResidual(
        8, 8, 1, 8, expand=False, attention=SB, attention_layers=('depthwise',)
    )
    assert len(block.conv) == 2
    assert block.conv[0].groups == 8
    # 8 // 6 = 1 hidden unit
    assert block.conv[0].attention.gate.fc1.weight.shape == (1, 8)


def test_the_attended_convolutions_only_are_the_given_kind():
    block = InvertedResidual(
        8,
        8,
        1,
        48,
        attention_conv_cfg=dict(type='sb_mm.DynamicConv2d'),
        attention_layers=('expand', 'project'),
    )
    kinds = [type(layer.conv).__name__ for layer in block.conv]
    assert kinds == ['DynamicConv2d', 'Conv2d', 'DynamicConv2d']


@pytest.mark.parametrize('with_cp', [False, True])
def test_the_expansion_is_what_the_first_layer_gives(with_cp, x, randomise):
    block = build(randomise, 8, 8, 1, 48, attention=SB, with_cp=with_cp)
    expanded, out = block.forward_with_expansion(x.requires_grad_())
    torch.testing.assert_close(expanded, block.conv[0](x))
    torch.testing.assert_close(out, block(x))


def test_the_block_has_exactly_its_parameters(parameter_count):
    # 8 * 48 + 9 * 48 + 48 * 16 convolutions, 2 * (48 + 48 + 16) BN
    assert parameter_count(InvertedResidual(8, 16, 1, 48)) == 1808


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(stride=3), 'stride must be one of 1, 2'),
        (dict(hidden_channels=0), r'hidden_channels must be .* \[1, inf\)'),
        (dict(attention_layers=('dw',)), "'depthwise', 'project', 'block'"),
        (dict(attention_after='bn'), "'conv', 'norm', 'act'"),
    ],
    ids=repr,
)
def test_arguments_out_of_range_name_what_is_allowed(kwargs, message):
    base = dict(in_channels=8, out_channels=8, stride=1, hidden_channels=8)
    with pytest.raises(ValueError, match=message):
        InvertedResidual(**{**base, **kwargs})


def test_without_expand_the_hidden_channels_are_the_input_channels():
    with pytest.raises(ValueError, match='hidden_channels'):
        InvertedResidual(8, 8, 1, 16, expand=False)
