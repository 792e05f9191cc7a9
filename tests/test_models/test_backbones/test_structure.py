"""What every network is made of, whatever its attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sb_mm import models
from sb_mm.models import DynamicConv2d
from sb_mm.models.backbones.blocks import InvertedResidual, ShuffleBlock

LAYERS = ('expand', 'depthwise', 'project')
TWO = ('expand', 'project')
CIFAR = 'AttentionMobileNetV2CIFAR'
SB = dict(attention=dict(type='sb_mm.ShiftBalance'))
SE = dict(attention=dict(type='sb_mm.SqueezeExcite'))
DYCONV = dict(attention_conv_cfg=dict(type='sb_mm.DynamicConv2d'))

# arXiv:2103.13080, Tables 1 to 3, 5 and 10, with the classifier; all that it
# prints are tested with the paper's cells.
COUNTS = [
    ('SBMobileNetV2', 0.35, dict(attention_layers=TWO), 2502664),
    ('SEMobileNetV2', 0.5, {}, 2086024),
    ('SEMobileNetV2', 0.35, dict(attention_layers=LAYERS), 2694604),
    ('DyConvMobileNetV2', 1.0, {}, 11157864),
    ('AttentionShuffleNetV2', 0.5, SB, 1775416),
    ('AttentionMnasNet', 0.5, SB, 5233160),
    (CIFAR, 0.5, dict(SE, attention_layers=('expand',)), 2055994),
]


@pytest.mark.parametrize(('name', 'width', 'kwargs', 'count'), COUNTS)
def test_the_parameters_are_the_paper_s(
    name, width, kwargs, count, parameter_count
):
    with torch.device('meta'):
        backbone = getattr(models, name)(width, **kwargs)
        features = 1024 if 'Shuffle' in name else 1280
        head = nn.Linear(features, 10 if name == CIFAR else 1000)
    assert parameter_count(backbone) + parameter_count(head) == count


def owners(model, kind):
    """The names of the modules that have a submodule of this kind."""
    return {
        name.rpartition('.')[0]
        for name, part in model.named_modules()
        if isinstance(part, kind)
    }


def test_host_settings_reach_every_layer(network, build):
    model = build(
        network,
        'sb',
        norm_cfg=dict(type='BN', eps=0.5),
        act_cfg=dict(type='LeakyReLU', negative_slope=0.3),
        conv_cfg=dict(type='sb_mm.DynamicConv2d', num_kernels=2),
    )
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {0.5}
    assert len(owners(model, DynamicConv2d)) == len(norms)
    assert owners(model, nn.Conv2d) == set()
    # Those of the gates are not the host's.
    assert all('gate' in name for name in owners(model, (nn.ReLU, nn.ReLU6)))
    bare = build(network, norm_cfg=None, act_cfg=None)
    assert not owners(bare, (nn.BatchNorm2d, nn.ReLU, nn.ReLU6))


def test_presets_pass_their_arguments_to_the_layers():
    sb = models.SBMobileNetV2(
        0.1, lambda_init=0.5, gate='relu', hidden_multiplier=2, dropout=0.25
    )
    attention = sb.layer2[0].conv[2].attention
    assert attention.lambda_.unique().tolist() == [0.5]
    assert attention.gate_function is torch.relu
    assert attention.gate.fc1.out_features == 2 * 8
    assert attention.gate.dropout.p == 0.25
    se = models.SEMobileNetV2(0.1, hidden_multiplier=3, dropout=0.5)
    gate = se.layer2[0].attention.gate
    assert (gate.fc1.out_features, gate.dropout.p) == (24, 0.5)
    dyconv = models.DyConvMobileNetV2(0.1, num_kernels=2, temperature=3.0)
    conv = dyconv.layer2[0].conv[0].conv
    assert (conv.num_kernels, conv.temperature.item()) == (2, 3)


# ---- blocks ------------------------------------------------------------


@pytest.mark.parametrize(
    'layers', [('expand',), ('depthwise',), ('expand', 'project')], ids=str
)
def test_attention_sits_in_exactly_the_layers_asked_for(layers):
    settings = dict(
        SB, **DYCONV, attention_layers=layers, attention_after='conv'
    )
    inverted = InvertedResidual(8, 16, 1, 48, shortcut=True, **settings)
    shuffle = ShuffleBlock(8, 12, 2, **settings)
    bare = InvertedResidual(8, 8, 1, None, **settings)
    for parts, names in (
        (inverted.conv, LAYERS),
        ([inverted.shortcut], ['shortcut']),
        (bare.conv, LAYERS[1:]),
        (shuffle.branch1, LAYERS[1:]),
        (shuffle.branch2, LAYERS),
    ):
        for part, name in zip(parts, names, strict=True):
            assert ('attention' in part.steps) == (name in layers)
            assert (part.steps[0] == 'attention') == (name in layers)
            assert (type(part.conv) is DynamicConv2d) == (name in layers)


@pytest.mark.parametrize('out_channels', [8, 16])
def test_the_block_attention_acts_before_the_addition(out_channels, randomise):
    places = dict(SE, shortcut=True, attention_layers=('block',))
    block = InvertedResidual(8, out_channels, 1, 48, **places)
    randomise(block, 0.5).eval()
    x = torch.randn(3, 8, 6, 6)
    y = block.conv(x)
    gates = block.attention.gate(y).sigmoid()[:, :, None, None]
    added = x
    if out_channels != 8:
        shortcut = block.shortcut
        added = shortcut.bn(F.conv2d(x, shortcut.conv.weight))
        assert added.min() < 0  # not activated
    torch.testing.assert_close(block(x), added + y * gates)


# ---- start values ------------------------------------------------------


@pytest.mark.parametrize('kind', ['sb', 'dyconv'])
def test_every_layer_starts_as_its_network_says(network, kind, build):
    """Uniform in +-1 / sqrt(fan-in), as PyTorch draws, or He's, fan-out."""
    model = build(network, kind, widen_factor=0.5)
    model.init_weights()
    uniform = network in ('cifar', 'shufflenet')
    convs = [
        m for m in model.modules() if type(m) in (nn.Conv2d, DynamicConv2d)
    ]
    assert len(convs) == len(owners(model, nn.BatchNorm2d))
    for conv in convs:
        for kernel in conv.weight.chunk(getattr(conv, 'num_kernels', 1)):
            bound = kernel[0].numel() ** -0.5
            fan_out = kernel.size(0) * kernel[0, 0].numel()
            std = bound / 3**0.5 if uniform else (2 / fan_out) ** 0.5
            # Five standard deviations of the estimate.
            error = 5 / (2 * kernel.numel()) ** 0.5
            assert kernel.std().item() == pytest.approx(std, rel=error)
            if uniform:
                assert 0.9 * bound < kernel.abs().max() <= bound
            elif kernel.numel() > 2000:
                assert kernel.abs().max() > 2.9 * std
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.weight.unique().tolist() == [1]
        assert norm.bias.unique().tolist() == [0]
    lambdas = [p for n, p in model.named_parameters() if 'lambda_' in n]
    assert all(p.unique().tolist() == pytest.approx([0.1]) for p in lambdas)


# ---- bad arguments -----------------------------------------------------

BOTH = [
    (dict(widen_factor=0), 'widen_factor must be'),
    (dict(out_indices=(8,)), 'out_indices must be a non-empty'),
    (dict(out_indices=()), 'out_indices must be a non-empty'),
    (dict(frozen_stages=8), r'frozen_stages must be .* \[-1, [37]\]'),
    (dict(attention_layers=('dw',)), "'expand', 'depthwise', 'project'"),
    (dict(attention_layers=('expand',)), 'no effect without attention'),
    (dict(DYCONV, attention_layers=('block',)), "'project', but got"),
]


@pytest.mark.parametrize(
    ('network', 'kwargs', 'message'),
    [
        *((n, *row) for n in ('mobilenet', 'shufflenet') for row in BOTH),
        ('mobilenet', dict(expand_indices=(0,)), 'from 1, 2, 3.* but got'),
        ('cifar', dict(expand_indices=(7,)), 'from 0, 1, 2.* but got'),
        ('shufflenet', dict(widen_factor=0.75), 'one of 0.5, 1.0, 1.5, 2.0'),
        (
            'shufflenet',
            dict(SB, attention_layers=('block',)),
            "'project', but",
        ),
    ],
    ids=repr,
)
def test_arguments_out_of_range_name_what_is_allowed(
    network, kwargs, message, build
):
    with pytest.raises(ValueError, match=message):
        build(network, **kwargs)
