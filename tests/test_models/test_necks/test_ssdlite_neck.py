"""The extra levels of SSDLite."""

import pytest
import torch

from sb_mm.models import SSDLiteNeck


def inputs(channels=(576, 1280)):
    torch.manual_seed(1)
    sizes = zip(channels, (19, 10), strict=True)
    return tuple(torch.randn(2, c, size, size) for c, size in sizes)


def test_six_levels_of_19_10_5_3_2_1(parameter_count):
    neck = SSDLiteNeck().eval()
    shapes = [tuple(o.shape[1:]) for o in neck(inputs())]
    channels, sides = (576, 1280, 512, 256, 256, 64), (19, 10, 5, 3, 2, 1)
    assert shapes == [(c, s, s) for c, s in zip(channels, sides, strict=True)]
    # A block: Cin * h + 9 * h + h * Cout, 2 * (h + h + Cout) of BN
    # 1280-256-512: 461,056 + 2,048; 512-128-256: 99,456 + 1,024;
    # 256-128-256: 66,688 + 1,024; 256-64-64: 21,056 + 384
    assert parameter_count(neck) == 652736


def test_the_inputs_pass_through_and_each_level_feeds_the_next():
    norm, act = dict(type='BN', eps=0.25), dict(type='LeakyReLU')
    neck = SSDLiteNeck((4, 6), (8, 8), (16, 16), norm, act).eval()
    given = inputs((4, 6))
    outs = neck(given)
    assert len(outs) == 4
    assert outs[:2] == given
    torch.testing.assert_close(outs[2], neck.extra_layers[0](given[1]))
    # Stride 2 and equal channels: nothing is added.
    expected = neck.extra_layers[1].conv(outs[2])
    torch.testing.assert_close(outs[3], expected)
    layer = neck.extra_layers[0].conv[0]
    assert layer.bn.eps == 0.25
    assert type(layer.activate).__name__ == 'LeakyReLU'


def test_the_convolutions_start_as_xavier_draws_them():
    """MMEngine would let each ConvModule draw again."""
    neck = SSDLiteNeck()
    neck.init_weights()
    for layer in (layer for b in neck.extra_layers for layer in b.conv):
        out, channels, *kernel = layer.conv.weight.shape
        # uniform: sqrt(6 / (fan_in + fan_out))
        bound = (6 / ((channels + out) * kernel[0] * kernel[1])) ** 0.5
        assert 0.98 * bound < layer.conv.weight.abs().max() <= bound


def test_a_backbone_of_another_width_is_named():
    neck = SSDLiteNeck((4, 6), (8,), (16,))
    with pytest.raises(ValueError, match=r'in_channels=\(4, 6\).*\(5, 6\)'):
        neck(inputs((5, 6)))


def test_one_image_passes_the_level_of_one_cell():
    neck = SSDLiteNeck((4, 6), (8, 8), (16, 16)).train()
    outs = neck((torch.randn(1, 4, 4, 4), torch.randn(1, 6, 3, 3)))
    assert outs[-1].shape == (1, 8, 1, 1)
    assert neck.extra_layers[1].conv[1].bn.running_mean.any()
