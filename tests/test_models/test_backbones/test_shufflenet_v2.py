"""ShuffleNetV2 with attention: counts, mmpretrain's layers and names."""

import pytest
import torch

from sb_mm.models import AttentionShuffleNetV2

SB = dict(type='sb_mm.ShiftBalance')
SE = dict(type='sb_mm.SqueezeExcite')
DYCONV = dict(attention_conv_cfg=dict(type='sb_mm.DynamicConv2d'))
WIDTHS = [0.5, 1.0, 1.5, 2.0]


# arXiv:2103.13080, Table 3, exact and printed.
@pytest.mark.parametrize(
    ('attention', 'exact', 'printed'),
    [
        (None, 1366792, '1.367'),
        (SE, 1772488, '1.772'),
        (SB, 1775416, '1.775'),
    ],
    ids=['static', 'se', 'sb'],
)
def test_parameters_of_table_3(
    attention, exact, printed, parameter_count, is_printed
):
    backbone = AttentionShuffleNetV2(0.5, attention=attention)
    # The classifier: Linear(1024, 1000) = 1024 * 1000 + 1000
    assert parameter_count(backbone) + 1025000 == exact
    assert is_printed(exact, printed)


@pytest.mark.parametrize('width', WIDTHS)
def test_trunk_has_the_names_and_shapes_of_mmpretrains(width):
    host = pytest.importorskip('mmpretrain.models').ShuffleNetV2(width)
    expected = {k: v.shape for k, v in host.state_dict().items()}
    static = AttentionShuffleNetV2(width).state_dict()
    assert {k: v.shape for k, v in static.items()} == expected
    state = AttentionShuffleNetV2(width, attention=SB).state_dict()
    assert all('attention' in k for k in state.keys() - expected.keys())
    common = {k: v.shape for k, v in state.items() if k in expected}
    assert common == expected


@pytest.mark.parametrize('width', [0.5, 1.5])
def test_static_network_computes_what_mmpretrains_does(
    width, images, settle, watch_activations
):
    models = pytest.importorskip('mmpretrain.models')
    everywhere = range(4)
    host = settle(models.ShuffleNetV2(width, everywhere), 64).double()
    ours = AttentionShuffleNetV2(width, everywhere).double().eval()
    ours.load_state_dict(host.state_dict())
    seen = watch_activations(ours)
    x = images(size=64).double()
    with torch.no_grad():
        expected, outs = host(x), ours(x)
    for a, b in zip(expected, outs, strict=True):
        torch.testing.assert_close(b, a)
    # Stem, last convolution, two a unit, one more where it samples down.
    assert len(seen) == 2 + 2 * (4 + 8 + 4) + 3
    assert all(low < 0 < high for low, high in seen)
    # ReLU6 would be another network.
    assert max(high for _, high in seen) > 6


def test_sizes_and_channels_are_those_of_the_architecture(images):
    model = AttentionShuffleNetV2(out_indices=range(4)).eval()
    with torch.no_grad():
        outs = model(images(1, 64))
    assert [tuple(o.shape[1:]) for o in outs] == [
        (116, 8, 8),
        (232, 4, 4),
        (464, 2, 2),
        (1024, 2, 2),
    ]


def test_hidden_units_are_the_output_channels_depthwise_or_not():
    model = AttentionShuffleNetV2(0.5, attention=SB)
    down = model.layers[1][0]
    layers = [*down.branch1, *down.branch2, *model.layers[2][1].branch2]
    sizes = [layer.attention.gate.fc1.out_features for layer in layers]
    # first branch: 48 depthwise, 48; second: 48 each; third stage: 192 / 2
    assert sizes == [48, 48, 48, 48, 48, 96, 96, 96]
    twice = AttentionShuffleNetV2(0.5, attention=dict(SB, hidden_multiplier=2))
    depthwise = twice.layers[1][0].branch1[0]
    assert depthwise.attention.gate.fc1.out_features == 96


def test_stem_and_last_convolution_have_no_attention():
    for kwargs in (dict(attention=SB), dict(attention=SE), DYCONV):
        model = AttentionShuffleNetV2(0.5, **kwargs)
        for layer in (model.conv1, model.layers[3]):
            assert set(dict(layer.named_children())) == {
                'conv',
                'bn',
                'activate',
            }
            assert type(layer.conv) is torch.nn.Conv2d


def test_the_default_start_values_are_pytorch_s():
    torch.manual_seed(0)
    model = AttentionShuffleNetV2(attention=SB)
    model.init_weights()
    unit = model.layers[2][1].branch2
    for conv in (unit[0].conv, unit[1].conv):
        bound = conv.weight[0].numel() ** -0.5
        assert conv.weight.abs().max() <= bound
        assert conv.weight.abs().max() > 0.98 * bound
        # uniform
        assert conv.weight.std().item() == pytest.approx(
            bound / 3**0.5, rel=0.05
        )
    assert unit[0].bn.weight.unique().tolist() == [1]
    assert unit[0].bn.bias.unique().tolist() == [0]
    lambda_ = unit[1].attention.lambda_
    assert lambda_.unique().tolist() == pytest.approx([0.1])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(widen_factor=0.75), 'widen_factor must be one of 0.5, 1.0, 1.5'),
        (dict(widen_factor='1'), 'widen_factor must be one of 0.5, 1.0, 1.5'),
        (dict(out_indices=(4,)), 'items from 0, 1, 2, 3, but got'),
        (dict(frozen_stages=4), r'frozen_stages must be .* \[-1, 3\]'),
        (
            dict(attention_layers=('block',)),
            "items from 'expand', 'depthwise', 'project', but got",
        ),
    ],
    ids=repr,
)
def test_arguments_out_of_range_name_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AttentionShuffleNetV2(**kwargs)
