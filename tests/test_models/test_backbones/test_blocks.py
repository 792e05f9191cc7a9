"""The blocks of MobileNetV2, MnasNet and ShuffleNetV2."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import Sequential
from torch import nn

from sb_mm.models import DynamicConv2d
from sb_mm.models.backbones.blocks import (
    InvertedResidual,
    ShuffleBlock,
    interleave,
)

SB = dict(type='sb_mm.ShiftBalance')
SE = dict(type='sb_mm.SqueezeExcite')
STRIDES = pytest.mark.parametrize('stride', [1, 2])


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(3, 8, 6, 6)


@pytest.fixture
def build(randomise):
    def make(*args, **kwargs):
        return randomise(InvertedResidual(*args, **kwargs), 0.5).eval()

    return make


# ---- inverted residuals ------------------------------------------------


@pytest.mark.parametrize(
    ('out_channels', 'stride', 'shortcut', 'added'),
    [
        (8, 1, False, True),
        (8, 1, True, True),
        (8, 2, True, False),
        (16, 1, False, False),
        (16, 2, True, False),
    ],
)
def test_the_input_is_added_at_stride_1_and_equal_channels(
    out_channels, stride, shortcut, added, x, build
):
    block = build(8, out_channels, stride, 48, shortcut=shortcut)
    layers = x
    for layer in block.conv:
        layers = layer(layers)
    torch.testing.assert_close(block(x), layers + x if added else layers)
    assert layers.shape == (3, out_channels, 6 // stride, 6 // stride)
    assert list(block.shortcut.parameters()) == []


def test_the_block_attention_acts_before_the_addition(x, build):
    block = build(8, 8, 1, 48, attention=SE, attention_layers=('block',))
    y = block.conv(x)
    gates = block.attention.gate(y).sigmoid()[:, :, None, None]
    torch.testing.assert_close(block(x), x + y * gates)
    # hidden units: C
    assert block.attention.gate.fc1.weight.shape == (8, 8)


def test_a_block_without_expand_names_its_layers_right():
    block = InvertedResidual(
        8, 8, 1, 8, expand=False, attention=SB, attention_layers=('depthwise',)
    )
    assert len(block.conv) == 2
    assert block.conv[0].groups == 8
    # 8 // 6 = 1 hidden unit
    assert block.conv[0].attention.gate.fc1.weight.shape == (1, 8)


def test_a_shortcut_carries_the_input_to_other_channels(x, build):
    every = ('expand', 'depthwise', 'project', 'block')
    block = build(
        8,
        16,
        1,
        48,
        shortcut=True,
        attention=SB,
        attention_conv_cfg=dict(type='sb_mm.DynamicConv2d'),
        attention_layers=every,
    )
    conv, bn = block.shortcut.conv, block.shortcut.bn
    # It has neither attention nor its convolution; the others have both.
    assert type(conv) is nn.Conv2d
    assert conv.bias is None
    assert list(block.shortcut.attention.parameters()) == []
    assert type(block.conv[2].conv) is DynamicConv2d
    y = bn(F.conv2d(x, conv.weight))
    assert y.min() < 0  # not activated
    out = block.conv(x)
    expected = block.attention(out, out) + y
    torch.testing.assert_close(block(x), expected)


@STRIDES
def test_the_kernel_size_is_the_depthwise_convolution_s(stride, x, build):
    block = build(8, 16, stride, 48, kernel_size=5, attention=SB)
    sizes = [layer.conv.kernel_size for layer in block.conv]
    assert sizes == [(1, 1), (5, 5), (1, 1)]
    assert block.conv[1].conv.padding == (2, 2)
    # 48 // 6
    assert block.conv[1].attention.gate.fc1.weight.shape == (8, 48)
    assert block(x).shape == (3, 16, 6 // stride, 6 // stride)


@pytest.mark.parametrize('with_cp', [False, True])
def test_the_expansion_is_what_the_first_layer_gives(with_cp, x, build):
    block = build(8, 8, 1, 48, attention=SB, with_cp=with_cp)
    expanded, out = block.forward_with_expansion(x.requires_grad_())
    torch.testing.assert_close(expanded, block.conv[0](x))
    torch.testing.assert_close(out, block(x))


def test_the_block_has_exactly_its_parameters(parameter_count):
    # 8 * 48 + 9 * 48 + 48 * 16 convolutions, 2 * (48 + 48 + 16) BN
    assert parameter_count(InvertedResidual(8, 16, 1, 48)) == 1808
    # and 8 * 16 convolution, 2 * 16 BN
    block = InvertedResidual(8, 16, 1, 48, shortcut=True)
    assert parameter_count(block) == 1808 + 160


def test_no_norm_and_no_activation_are_none(x):
    block = InvertedResidual(8, 8, 1, 48, norm_cfg=None, act_cfg=None)
    kinds = {type(m) for m in block.modules()}
    assert not kinds & {nn.BatchNorm2d, nn.ReLU6, nn.ReLU}
    # Linear, but for the biases that then are there.
    layers = x
    for layer in block.conv:
        layers = layer.conv(layers)
    torch.testing.assert_close(block(x), layers + x)


def test_a_block_s_own_init_cfg_lives_in_a_network():
    ones = dict(type='Constant', val=1, layer='Conv2d')
    twos = dict(type='Constant', val=2, layer='Conv2d')
    other = ShuffleBlock(8, 8, 1)
    block = InvertedResidual(8, 8, 1, 48, init_cfg=twos)
    network = Sequential(Sequential(block), other, init_cfg=ones)
    network.init_weights()
    assert block.conv[1].conv.weight.unique().tolist() == [2]
    assert other.branch2[1].conv.weight.unique().tolist() == [1]


# ---- ShuffleNetV2's ----------------------------------------------------


def shuffle(randomise, stride, **kwargs):
    block = ShuffleBlock(8, 8 if stride == 1 else 12, stride, **kwargs)
    return randomise(block, 0.5).eval()


def test_channels_of_two_features_alternate():
    first = torch.arange(6.0).view(1, 3, 1, 2)
    out = interleave(first, -first)
    assert out.flatten().tolist() == [0, 1, 0, -1, 2, 3, -2, -3, 4, 5, -4, -5]


@STRIDES
def test_the_static_block_computes_what_mmpretrain_s_does(
    stride, x, randomise
):
    pytest.importorskip('mmpretrain.models')
    from mmpretrain.models.backbones import shufflenet_v2

    block = shuffle(randomise, stride)
    host = shufflenet_v2.InvertedResidual(8, 8 if stride == 1 else 12, stride)
    host.eval().load_state_dict(block.state_dict())
    torch.testing.assert_close(block(x * 9), host(x * 9))


@STRIDES
def test_both_branches_have_attention(stride, x, randomise):
    block = shuffle(randomise, stride, attention=SB)
    if stride == 1:
        first, second = x.chunk(2, 1)
    else:
        first, second = block.branch1(x), x
    expected = interleave(first, block.branch2(second))
    assert block(x).equal(expected)
    layers = [*getattr(block, 'branch1', []), *block.branch2]
    for layer in layers:
        # As many hidden units as outputs, depthwise or not.
        gate = layer.attention.gate
        assert gate.fc1.out_features == layer.conv.out_channels


# ---- both --------------------------------------------------------------


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(stride=3), 'stride must be one of 1, 2'),
        (dict(kernel_size=4), 'kernel_size must be one of 3, 5, but got 4'),
        (dict(hidden_channels=0), r'hidden_channels must be .* \[1, inf\)'),
        (dict(hidden_channels=16, expand=False), 'must equal in_channels'),
        (dict(attention_layers=('dw',)), "'depthwise', 'project', 'block'"),
    ],
    ids=repr,
)
def test_what_an_inverted_residual_refuses(kwargs, message):
    base = dict(in_channels=8, out_channels=8, stride=1, hidden_channels=8)
    with pytest.raises(ValueError, match=message):
        InvertedResidual(**{**base, **kwargs})


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(stride=3), 'stride must be one of 1, 2'),
        (dict(out_channels=9, stride=2), 'out_channels must be even.* 9 and'),
        (dict(out_channels=10), 'equal to in_channels, but got 10 and 8'),
        (dict(attention_layers=('block',)), "'depthwise', 'project', but got"),
    ],
    ids=repr,
)
def test_what_a_shuffle_block_refuses(kwargs, message):
    base = dict(in_channels=8, out_channels=8, stride=1)
    with pytest.raises(ValueError, match=message):
        ShuffleBlock(**{**base, **kwargs})
