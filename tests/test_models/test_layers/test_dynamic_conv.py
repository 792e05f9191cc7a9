"""Dynamic convolution: each sample has its own mixture of kernels."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import Sequential
from torch import nn

from sb_mm.models.layers import DynamicConv2d

FORMS = {
    'pointwise': dict(kernel_size=1),
    'pointwise with bias': dict(kernel_size=1, bias=True),
    'strided pointwise': dict(kernel_size=1, stride=(2, 3)),
    'padded pointwise': dict(kernel_size=1, padding=1),
    'grouped pointwise': dict(kernel_size=1, groups=2),
    'depthwise': dict(kernel_size=3, padding=1, groups=8),
    'strided depthwise': dict(kernel_size=3, padding=1, stride=2, groups=8),
    'grouped': dict(kernel_size=3, groups=4, bias=True),
    'plain': dict(kernel_size=(3, 2), padding=(2, 1)),
    'dilated': dict(kernel_size=3, dilation=2, padding=1),
}
forms = pytest.mark.parametrize('form', list(FORMS))


def build(form, **kwargs):
    return DynamicConv2d(8, 8, **FORMS[form], **kwargs)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(9, 8, 6, 7) * 4 + 1


def sample_loop(conv, x, shares):
    """Mix the kernels and convolve, one sample after the other."""
    geometry = conv.stride, conv.padding, conv.dilation, conv.groups
    outs = []
    for sample, weights in zip(x, shares, strict=True):

        def mix(bank, weights=weights):
            parts = zip(weights, bank.split(conv.out_channels), strict=True)
            return sum(weight * part for weight, part in parts)

        bias = None if conv.bias is None else mix(conv.bias)
        out = F.conv2d(sample[None], mix(conv.weight), bias, *geometry)
        outs.append(out)
    return torch.cat(outs)


@pytest.mark.parametrize(('batch', 'training'), [(1, False), (9, True)])
@forms
def test_dyconv_is_a_loop_over_the_samples(
    form, batch, training, x, randomise, gate_formula
):
    conv = randomise(build(form, temperature=3.0)).train(training)
    x = x[:batch]
    scores = (gate_formula(conv.gate, x, training)[0] / 3.0).exp()
    shares = scores / scores.sum(1, keepdim=True)
    assert shares.std() > 0.05
    torch.testing.assert_close(
        conv(x), sample_loop(conv, x, shares), rtol=1e-4, atol=1e-3
    )


@forms
@pytest.mark.parametrize('kernels', [1, 3])
def test_equal_kernels_are_a_plain_convolution(form, kernels, x, randomise):
    conv = randomise(build(form, num_kernels=kernels)).eval()
    plain = nn.Conv2d(8, 8, **{'bias': False, **FORMS[form]})
    conv.load_state_dict(plain.state_dict(), strict=False)
    assert len(conv.weight) == kernels * 8
    assert conv.weight.shape[1:] == plain.weight.shape[1:]
    torch.testing.assert_close(conv(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('kwargs', 'kernel', 'hidden'),
    [
        (dict(kernel_size=1), 8, 2),
        (dict(kernel_size=1, bias=True), 8 + 1, 2),
        (dict(kernel_size=3, groups=2, num_kernels=2), 4 * 9, 2),
        (dict(kernel_size=1, reduction=1), 8, 8),
        (dict(kernel_size=1, reduction=99), 8, 1),
    ],
    ids=repr,
)
def test_dyconv_has_exactly_its_parameters(
    kwargs, kernel, hidden, parameter_count
):
    conv = DynamicConv2d(8, 12, **kwargs)
    k = kwargs.get('num_kernels', 4)
    gate = 8 * hidden + hidden + hidden * k + k + 2 * (hidden + k)
    assert parameter_count(conv) == k * 12 * kernel + gate


def test_the_temperature_is_saved_and_restored(x, randomise):
    hot = randomise(build('pointwise')).eval()
    cold = build('pointwise', temperature=2.0).eval()
    assert 'temperature' not in dict(hot.named_parameters())
    cold.load_state_dict(hot.state_dict())
    assert cold.temperature == 30
    torch.testing.assert_close(cold(x), hot(x))
    cold.temperature.fill_(2)
    assert (cold(x) - hot(x)).abs().max() > 0.1


@forms
def test_dyconv_keeps_channels_last(form, x, randomise):
    conv = randomise(build(form)).eval()
    expected = conv(x)
    assert expected.is_contiguous()
    conv.to(memory_format=torch.channels_last)
    out = conv(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-3)
    assert out.stride(1) == 1


@forms
def test_autocast_gives_the_output_in_bfloat16(form, x, randomise):
    conv = randomise(build(form)).eval()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.bfloat16
    error = (out.float() - conv(x)).abs().max()
    assert error < 0.05 * conv(x).abs().max()


def test_an_empty_batch_gives_an_empty_output():
    x = torch.randn(0, 8, 6, 7)
    assert build('pointwise').eval()(x).shape == x.shape
    assert build('strided depthwise').eval()(x).shape == (0, 8, 3, 4)


@pytest.mark.parametrize(
    ('init_cfg', 'std'),
    [
        # He, fan-out: 2 / (Cout * kh * kw)
        (None, (2 / (64 * 9)) ** 0.5),
        # 2 / (fan-in + fan-out)
        (dict(type='Xavier', layer='Conv2d'), (2 / 9 / (16 + 64)) ** 0.5),
        (dict(type='Normal', std=0.5, layer='Conv2d'), 0.5),
    ],
    ids=repr,
)
def test_kernels_start_as_a_plain_convolution(init_cfg, std):
    torch.manual_seed(0)
    conv = DynamicConv2d(32, 64, 3, groups=2, bias=True)
    conv.bias.data.fill_(3)
    Sequential(conv, init_cfg=init_cfg).init_weights()
    kernels = conv.weight.view(4, -1)
    assert kernels.std(1).tolist() == pytest.approx([std] * 4, rel=0.04)
    # Independently of each other.
    correlation = torch.corrcoef(kernels) - torch.eye(4)
    assert correlation.abs().max() < 0.05
    assert conv.bias.unique().tolist() == ([0] if init_cfg else [3])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(num_kernels=0), r'num_kernels must be an integer in \[1'),
        (dict(temperature=0), r'temperature must be a number in \(0, inf\)'),
        (dict(reduction=0), r'reduction must be an integer in \[1'),
    ],
    ids=repr,
)
def test_arguments_out_of_range_name_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DynamicConv2d(8, 8, 3, **kwargs)
