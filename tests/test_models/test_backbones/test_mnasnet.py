"""MnasNet with attention: counts, torchvision's layers."""

import pytest
import torch
from torch import nn

from sb_mm.convert_weights import convert
from sb_mm.models import AttentionMnasNet, ShiftBalance

SB = dict(type='sb_mm.ShiftBalance')
SE = dict(type='sb_mm.SqueezeExcite')


# arXiv:2103.13080, Table 3, exact and printed.
@pytest.mark.parametrize(
    ('attention', 'exact', 'printed'),
    [
        (None, 2218512, '2.219'),
        (SE, 5224168, '5.224'),
        (SB, 5233160, '5.233'),
    ],
    ids=['static', 'se', 'sb'],
)
def test_parameters_of_table_3(
    attention, exact, printed, parameter_count, is_printed
):
    backbone = AttentionMnasNet(0.5, attention=attention)
    # The classifier: Linear(1280, 1000) = 1280 * 1000 + 1000
    assert parameter_count(backbone) + 1281000 == exact
    assert is_printed(exact, printed)


@pytest.mark.parametrize('width', [0.1, 0.5, 1.0])
def test_every_stage_computes_what_torchvision_s_does(
    width, images, settle, watch_activations
):
    models = pytest.importorskip('torchvision.models')
    theirs = settle(models.MNASNet(width, num_classes=3)).double()
    ours = AttentionMnasNet(width, out_indices=range(8)).double().eval()
    state = {
        name.removeprefix('backbone.'): value
        for name, value in convert(theirs.state_dict()).state_dict.items()
        if not name.startswith('head.')
    }
    ours.load_state_dict(state)
    seen = watch_activations(ours)
    x = images(size=64).double()
    # Its stages end before these layers; 17 is the number of layers.
    ends = (8, 9, 10, 11, 12, 13, 14, 17)
    with torch.no_grad():
        outs = ours(x)
        for out, end in zip(outs, ends, strict=True):
            torch.testing.assert_close(out, theirs.layers[:end](x))
    # Stem, first stage, last convolution, and two a block.
    assert len(seen) == 3 + 2 * (3 + 3 + 3 + 2 + 4 + 1)
    assert all(low < 0 < high for low, high in seen)
    # ReLU6 would be another network.
    assert max(high for _, high in seen) > 6


def test_sizes_and_channels_are_those_of_the_architecture(images):
    model = AttentionMnasNet(out_indices=range(8)).eval()
    with torch.no_grad():
        outs = model(images(1, 64))
    assert [tuple(o.shape[1:]) for o in outs] == [
        (16, 32, 32),
        (24, 16, 16),
        (40, 8, 8),
        (80, 4, 4),
        (96, 4, 4),
        (192, 2, 2),
        (320, 2, 2),
        (1280, 2, 2),
    ]


@pytest.mark.parametrize('width', [0.1, 1.3])
def test_the_last_convolution_has_1280_channels_at_every_width(width):
    assert AttentionMnasNet(width).conv2.conv.out_channels == 1280


def test_batch_normalisation_is_as_slow_as_torchvision_s():
    models = pytest.importorskip('torchvision.models')

    def momenta(model):
        norms = (m for m in model.modules() if type(m) is nn.BatchNorm2d)
        return {m.momentum for m in norms}

    theirs = momenta(models.MNASNet(0.1))
    assert theirs == {1 - 0.9997}
    assert momenta(AttentionMnasNet(0.1, attention=SB)) == theirs
    other = AttentionMnasNet(0.1, norm_cfg=dict(type='BN'))
    assert momenta(other) == {0.1}


def test_hidden_units_of_a_depthwise_layer_are_a_sixth_of_its_channels():
    model = AttentionMnasNet(attention=SB)
    # Whatever the expansion: 16 * 3 = 48 // 6 = 8, 80 * 6 = 480 // 6 = 80
    for block, hidden in ((model.layer2[0], 8), (model.layer4[2], 80)):
        expand, depthwise, project = block.conv
        assert depthwise.attention.gate.fc1.out_features == hidden
        for layer in (expand, project):
            gate = layer.attention.gate
            assert gate.fc1.out_features == layer.conv.out_channels


def test_the_separable_first_stage_has_no_attention_at_all():
    every = ('expand', 'depthwise', 'project', 'block')
    model = AttentionMnasNet(0.1, attention=SB, attention_layers=every)
    kinds = [type(m) for m in model.layer1.modules()]
    assert ShiftBalance not in kinds
    # three layers and the block's output
    assert sum(type(m) is ShiftBalance for m in model.layer2[0].modules()) == 4
    dyconv = dict(type='sb_mm.DynamicConv2d')
    model = AttentionMnasNet(0.1, attention_conv_cfg=dyconv)
    assert type(model.layer1[0].conv) is nn.Conv2d
    assert type(model.layer1[1].conv) is nn.Conv2d


def test_the_default_start_values_are_torchvision_s():
    torch.manual_seed(0)
    model = AttentionMnasNet(attention=SB)
    model.init_weights()
    for conv in (model.layer4[1].conv[0].conv, model.layer6[1].conv[1].conv):
        # He, fan-out: 2 / (Cout * kernel)
        fan_out = conv.out_channels * conv.weight[0, 0].numel()
        std = (2 / fan_out) ** 0.5
        assert conv.weight.std().item() == pytest.approx(std, rel=0.05)
        assert conv.weight.abs().max() > 3 * std  # normal, not uniform
    norm = model.layer4[1].conv[0].bn
    assert norm.weight.unique().tolist() == [1]
    lambda_ = model.layer4[1].conv[0].attention.lambda_
    assert lambda_.unique().tolist() == pytest.approx([0.1])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(widen_factor=-1), r'widen_factor must be a number in \(0, inf'),
        (dict(out_indices=(8,)), 'items from 0, 1, 2, 3, 4, 5, 6, 7, but'),
        (dict(expand_indices=(0,)), 'items from 1, 2, 3, 4, 5, 6, but got'),
        (dict(frozen_stages=8), r'frozen_stages must be .* \[-1, 7\]'),
    ],
    ids=repr,
)
def test_arguments_out_of_range_name_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AttentionMnasNet(**kwargs)
