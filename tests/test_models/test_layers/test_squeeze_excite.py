"""Squeeze-and-Excite: y = T(x) * sigmoid(F(x))."""

import pytest
import torch

from sb_mm.models.layers import SqueezeExcite


@pytest.fixture
def se(randomise):
    return randomise(SqueezeExcite(5, 7))


@pytest.fixture
def data():
    torch.manual_seed(1)
    return torch.randn(6, 7, 2, 3), torch.randn(6, 5, 4, 5) * 3 + 1


@pytest.mark.parametrize('training', [False, True])
def test_se_is_the_formula_of_the_paper(se, data, gate_formula, training):
    trunk, x = data
    logits, _ = gate_formula(se.gate, x, training)
    gates = 1 / (1 + (-logits).exp())
    expected = torch.stack(
        [
            torch.stack([trunk[n, c] * gates[n, c] for c in range(7)])
            for n in range(6)
        ]
    )
    torch.testing.assert_close(
        se.train(training)(trunk, x), expected, rtol=1e-4, atol=1e-5
    )


def test_se_with_logits_of_zero_halves_the_trunk(se, data):
    se.gate.bn2.weight.data.zero_()
    se.gate.bn2.bias.data.zero_()
    trunk, x = data
    torch.testing.assert_close(se(trunk, x), trunk / 2)


@pytest.mark.parametrize(
    ('kwargs', 'count'),
    [
        # hidden 24: 5 * 24 + 24 * 24 Linear, 2 * 24 + 2 * 24 BN
        (dict(), 792),
        # hidden 24 // 6 = 4: 5 * 4 + 4 * 24, 2 * 4 + 2 * 24
        (dict(depthwise=True), 172),
        # hidden 24 // 5 = 4
        (dict(depthwise=True, depthwise_reduction=5), 172),
        # hidden 4 * 3 = 12: 5 * 12 + 12 * 24, 2 * 12 + 2 * 24
        (dict(depthwise=True, hidden_multiplier=3), 420),
        # a reduction counts behind depthwise layers only
        (dict(depthwise_reduction=24), 792),
        # hidden at least 1: 5 + 24, 2 + 2 * 24
        (dict(hidden_multiplier=0.01), 79),
    ],
    ids=repr,
)
def test_se_has_exactly_its_parameters(kwargs, count, parameter_count):
    assert parameter_count(SqueezeExcite(5, 24, **kwargs)) == count


def test_the_multiplier_acts_on_the_rounded_hidden_units():
    se = SqueezeExcite(5, 20, depthwise=True, hidden_multiplier=3)
    # 20 // 6 * 3, and not 20 * 3 // 6
    assert se.gate.fc1.out_features == 9


def test_every_parameter_gets_a_gradient(se, data, all_gradients):
    out = se.train()(*data)
    (out * torch.randn_like(out)).sum().backward()
    assert all_gradients(se) == []


def test_one_training_image_leaves_the_statistics_alone(
    se, data, all_gradients
):
    trunk, x = (t[:1] for t in data)
    before = {k: v.clone() for k, v in se.named_buffers()}
    out = se.train()(trunk, x)
    (out * torch.randn_like(out)).sum().backward()
    assert all_gradients(se) == []
    torch.testing.assert_close(out, se.eval()(trunk, x))
    for name, value in se.named_buffers():
        assert value.equal(before[name]), name


def test_se_keeps_the_type_of_the_trunk(se, data):
    trunk, x = data
    out = se.eval()(trunk.bfloat16(), x)
    assert out.dtype == torch.bfloat16


def test_se_keeps_channels_last(se, data, is_channels_last):
    last = [t.to(memory_format=torch.channels_last) for t in data]
    out = se.eval()(*last)
    assert is_channels_last(out)
    torch.testing.assert_close(out, se(*data))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(in_channels=0), r'in_channels must be an integer in \[1'),
        (dict(out_channels=2.0), r'out_channels must be an integer in \[1'),
        (dict(depthwise_reduction=0), r'depthwise_reduction .* \[1, inf\)'),
        (dict(hidden_multiplier=0), r'hidden_multiplier .* \(0, inf\)'),
        (dict(dropout=1.0), r'dropout must be a number in \[0, 1\)'),
        (dict(dropout=-0.1), r'dropout must be a number in \[0, 1\)'),
    ],
    ids=repr,
)
def test_arguments_out_of_range_name_what_is_allowed(kwargs, message):
    sizes = dict(in_channels=4, out_channels=4)
    with pytest.raises(ValueError, match=message):
        SqueezeExcite(**{**sizes, **kwargs})


def test_the_offset_opens_the_gates(se, data, gate_formula):
    open_ = SqueezeExcite(5, 7, gate_offset=4)
    open_.load_state_dict(se.state_dict())
    trunk, x = data
    logits, _ = gate_formula(se.gate, x, True)
    expected = trunk / (1 + (-logits - 4).exp())[:, :, None, None]
    torch.testing.assert_close(
        open_.train()(trunk, x), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('bad', ['4', None, float('nan')])
def test_an_offset_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match='gate_offset'):
        SqueezeExcite(5, 7, gate_offset=bad)


def test_a_gate_without_norm_has_biases_instead(data):
    torch.manual_seed(0)
    se = SqueezeExcite(5, 7, gate_norm=False)
    # hidden 7: 5 * 7 + 7 * 7 weights, 7 + 7 biases
    assert sum(p.numel() for p in se.parameters()) == 5 * 7 + 7 * 7 + 14
    trunk, x = data
    hidden = x.mean((2, 3)) @ se.gate.fc1.weight.T + se.gate.fc1.bias
    logits = hidden.clamp(min=0) @ se.gate.fc2.weight.T + se.gate.fc2.bias
    expected = trunk / (1 + (-logits).exp())[:, :, None, None]
    torch.testing.assert_close(se(trunk, x), expected, rtol=1e-4, atol=1e-5)
    assert not [n for n in se.state_dict() if 'running' in n]
