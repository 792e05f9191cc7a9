"""The blocks' own rules; what else they do, the networks' tests say."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import Sequential

from sb_mm.models import DynamicConv2d
from sb_mm.models.backbones.blocks import InvertedResidual, ShuffleBlock

SB = dict(type='sb_mm.ShiftBalance')
ALL = ('expand', 'depthwise', 'project')
SE = dict(type='sb_mm.SqueezeExcite')


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(3, 8, 6, 6)


@pytest.fixture
def build(randomise):
    def make(*args, **kwargs):
        return randomise(InvertedResidual(*args, **kwargs), 0.5).eval()

    return make


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
@pytest.mark.parametrize('kernel_size', [3, 5])
def test_the_input_is_added_at_stride_1_and_equal_channels(
    kernel_size, out_channels, stride, shortcut, added, x, build
):
    block = build(
        8, out_channels, stride, 48, shortcut=shortcut, kernel_size=kernel_size
    )
    layers = x
    for layer in block.conv:
        layers = layer(layers)
    torch.testing.assert_close(block(x), layers + x if added else layers)
    assert layers.shape == (3, out_channels, 6 // stride, 6 // stride)
    sizes = [layer.conv.kernel_size[0] for layer in block.conv]
    assert sizes == [1, kernel_size, 1]


@pytest.mark.parametrize(
    'layers', [('expand',), ('depthwise',), ('expand', 'project')], ids=str
)
def test_attention_sits_in_exactly_the_layers_asked_for(layers):
    settings = dict(
        attention=SB,
        attention_conv_cfg=dict(type='sb_mm.DynamicConv2d'),
        attention_layers=layers,
        attention_after='conv',
    )
    inverted = InvertedResidual(8, 16, 1, 48, shortcut=True, **settings)
    shuffle = ShuffleBlock(8, 12, 2, **settings)
    bare = InvertedResidual(8, 8, 1, None, **settings)
    for parts, names in (
        (inverted.conv, ALL),
        ([inverted.shortcut], ['shortcut']),
        (bare.conv, ALL[1:]),
        (shuffle.branch1, ALL[1:]),
        (shuffle.branch2, ALL),
    ):
        for part, name in zip(parts, names, strict=True):
            assert ('attention' in part.steps) == (name in layers)
            assert (part.steps[0] == 'attention') == (name in layers)
            assert (type(part.conv) is DynamicConv2d) == (name in layers)


def test_the_block_attention_acts_before_the_addition(x, build):
    block = build(8, 8, 1, 48, attention=SE, attention_layers=('block',))
    y = block.conv(x)
    gates = block.attention.gate(y).sigmoid()[:, :, None, None]
    torch.testing.assert_close(block(x), x + y * gates)


def test_a_shortcut_carries_the_input_to_other_channels(x, build):
    block = build(8, 16, 1, 48, shortcut=True, attention=SB)
    y = block.shortcut.bn(F.conv2d(x, block.shortcut.conv.weight))
    assert y.min() < 0  # not activated
    torch.testing.assert_close(block(x), block.conv(x) + y)


@pytest.mark.parametrize('with_cp', [False, True])
def test_the_expansion_is_what_the_first_layer_gives(with_cp, x, build):
    block = build(8, 8, 1, 48, attention=SB, with_cp=with_cp)
    expanded, out = block.forward_with_expansion(x.requires_grad_())
    torch.testing.assert_close(expanded, block.conv[0](x))
    torch.testing.assert_close(out, block(x))


@pytest.mark.parametrize('stride', [1, 2])
def test_the_channels_of_a_shuffle_block_s_branches_alternate(
    stride, x, randomise
):
    block = ShuffleBlock(8, 8 if stride == 1 else 12, stride, attention=SB)
    randomise(block, 0.5).eval()
    first, second = x.chunk(2, 1) if stride == 1 else (block.branch1(x), x)
    out = block(x)
    assert out[:, ::2].equal(first)
    assert out[:, 1::2].equal(block.branch2(second))
    for layer in [*getattr(block, 'branch1', []), *block.branch2]:
        # As many hidden units as outputs, depthwise or not.
        gate = layer.attention.gate
        assert gate.fc1.out_features == layer.conv.out_channels


def test_a_block_s_own_init_cfg_lives_in_a_network():
    ones = dict(type='Constant', val=1, layer='Conv2d')
    twos = dict(type='Constant', val=2, layer='Conv2d')
    other = ShuffleBlock(8, 8, 1)
    block = InvertedResidual(8, 8, 1, 48, init_cfg=twos)
    network = Sequential(Sequential(block), other, init_cfg=ones)
    network.init_weights()
    assert block.conv[1].conv.weight.unique().tolist() == [2]
    assert other.branch2[1].conv.weight.unique().tolist() == [1]


@pytest.mark.parametrize('hidden', [0, 2.5])
def test_hidden_channels_out_of_range_are_refused(hidden):
    with pytest.raises(ValueError, match=r'hidden_channels must be .* \[1'):
        InvertedResidual(8, 8, 1, hidden)
