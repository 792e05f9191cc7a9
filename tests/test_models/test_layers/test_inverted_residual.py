"""The block of MobileNetV2."""

import pytest
import torch
import torch.nn.functional as F

from sb_mm.models.backbones.blocks import InvertedResidual

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


def test_a_shortcut_carries_the_input_to_other_channels(x, randomise):
    block = build(randomise, 8, 16, 1, 48, shortcut=True)
    conv, bn = block.shortcut.conv, block.shortcut.bn
    assert conv.weight.shape == (16, 8, 1, 1)
    assert conv.bias is None
    y = F.conv2d(x, conv.weight)
    shape = (1, -1, 1, 1)
    y = (y - bn.running_mean.view(shape)) / (
        bn.running_var.view(shape) + bn.eps
    ) ** 0.5
    y = y * bn.weight.view(shape) + bn.bias.view(shape)
    assert y.min() < 0  # not activated
    out = block(x)
    torch.testing.assert_close(out, block.conv(x) + y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('out_channels', 'stride', 'shortcut'),
    [(8, 1, True), (16, 2, True), (8, 2, True), (16, 1, False)],
)
def test_other_blocks_have_no_convolution_in_their_shortcut(
    out_channels, stride, shortcut
):
    block = InvertedResidual(8, out_channels, stride, 48, shortcut=shortcut)
    assert list(block.shortcut.parameters()) == []
    added = stride == 1 and out_channels == 8
    assert block.use_res_connect == added


def test_the_shortcut_has_neither_attention_nor_its_convolution():
    block = InvertedResidual(
        8,
        16,
        1,
        48,
        shortcut=True,
        attention=SB,
        attention_conv_cfg=dict(type='sb_mm.DynamicConv2d'),
        attention_layers=('expand', 'depthwise', 'project', 'block'),
    )
    assert type(block.shortcut.conv) is torch.nn.Conv2d
    assert list(block.shortcut.attention.parameters()) == []
    # The others have both.
    assert type(block.conv[2].conv).__name__ == 'DynamicConv2d'
    assert type(block.attention).__name__ == 'ShiftBalance'


def test_the_shortcut_has_exactly_its_parameters(parameter_count):
    block = InvertedResidual(8, 16, 1, 48, shortcut=True)
    # As without one, see below, and 8 * 16 convolution, 2 * 16 BN
    assert parameter_count(block) == 1808 + 160


@pytest.mark.parametrize('with_cp', [False, True])
def test_every_parameter_of_a_block_with_a_shortcut_gets_a_gradient(
    with_cp, x, randomise, all_gradients
):
    block = build(
        randomise, 8, 16, 1, 48, shortcut=True, attention=SB, with_cp=with_cp
    ).train()
    out = block(x.requires_grad_())
    (out * torch.randn_like(out)).sum().backward()
    assert all_gradients(block) == []


@pytest.mark.parametrize('stride', [1, 2])
def test_the_kernel_size_is_the_depthwise_convolution_s(stride, x, randomise):
    block = build(randomise, 8, 16, stride, 48, kernel_size=5)
    sizes = [layer.conv.kernel_size for layer in block.conv]
    assert sizes == [(1, 1), (5, 5), (1, 1)]
    expand, depthwise, project = block.conv
    # Centred, with two pixels of zeros around the image.
    y = F.pad(expand(x), (2, 2, 2, 2))
    patches = y.unfold(2, 5, stride).unfold(3, 5, stride)
    kernel = depthwise.conv.weight[:, 0, None, None]
    trunk = depthwise.bn((patches * kernel).sum((4, 5)))
    expected = project(trunk.clamp(0, 6))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)
    assert expected.shape == (3, 16, 6 // stride, 6 // stride)


def test_a_larger_kernel_leaves_the_gate_as_it_is():
    block = InvertedResidual(8, 8, 1, 48, kernel_size=5, attention=SB)
    # 48 // 6
    assert block.conv[1].attention.gate.fc1.weight.shape == (8, 48)


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
        (dict(kernel_size=4), 'kernel_size must be one of 3, 5, but got 4'),
        (dict(kernel_size=1), 'kernel_size must be one of 3, 5, but got 1'),
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
