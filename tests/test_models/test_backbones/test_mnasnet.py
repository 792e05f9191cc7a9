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


@pytest.mark.parametrize('width', [0.1, 1.3])
def test_the_last_convolution_has_1280_channels_at_every_width(width):
    assert AttentionMnasNet(width).conv2.conv.out_channels == 1280


def test_batch_normalisation_is_as_slow_as_torchvision_s():
    models = pytest.importorskip('torchvision.models')

    def momenta(model):
        norms = (m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        return {m.momentum for m in norms}

    theirs = momenta(models.MNASNet(0.1))
    assert theirs == {1 - 0.9997}
    assert momenta(AttentionMnasNet(0.1, attention=SB)) == theirs
    other = AttentionMnasNet(0.1, norm_cfg=dict(type='BN'))
    assert momenta(other) == {0.1}


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
