"""ShuffleNetV2 with attention: counts, mmpretrain's layers and names."""

import pytest
import torch

from sb_mm.models import AttentionShuffleNetV2

SB = dict(type='sb_mm.ShiftBalance')
SE = dict(type='sb_mm.SqueezeExcite')
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


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(widen_factor=0.75), 'widen_factor must be one of 0.5, 1.0, 1.5'),
        (dict(widen_factor='1'), 'widen_factor must be one of 0.5, 1.0, 1.5'),
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
