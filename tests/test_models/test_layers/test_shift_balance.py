"""Shift-and-Balance: y = T(x) + lambda * gate(F(x))."""

import numpy as np
import pytest
import torch

from sb_mm.models.layers import ShiftBalance

GATES = {
    'tanh': lambda z: (np.exp(z) - np.exp(-z)) / (np.exp(z) + np.exp(-z)),
    'sigmoid': lambda z: 1 / (1 + np.exp(-z)),
    'softmax': lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True),
    'relu': lambda z: np.where(z > 0, z, 0),
    'none': lambda z: z,
}


@pytest.fixture
def sb(randomise):
    return randomise(ShiftBalance(5, 7))


@pytest.fixture
def data():
    torch.manual_seed(1)
    return torch.randn(6, 7, 2, 3), torch.randn(6, 5, 4, 5) * 3 + 1


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('gate', list(GATES))
def test_sb_is_the_formula_of_the_paper(
    gate, training, data, randomise, gate_formula
):
    sb = randomise(ShiftBalance(5, 7, gate=gate)).train(training)
    trunk, x = data
    logits = gate_formula(sb.gate, x, training)[0].detach().double().numpy()
    # Both sides of the gates that have two.
    assert logits.min() < -1
    assert logits.max() > 1
    shift = sb.lambda_.detach().numpy() * GATES[gate](logits)
    expected = trunk.double().numpy() + shift[:, :, None, None]
    np.testing.assert_allclose(
        sb(trunk, x).detach().numpy(), expected, rtol=1e-4, atol=1e-4
    )


def test_sb_with_lambda_zero_is_the_trunk(data):
    sb = ShiftBalance(5, 7, lambda_init=0)
    assert sb(*data).equal(data[0])


@pytest.mark.parametrize(
    ('gate', 'shift'),
    [('tanh', 0), ('sigmoid', 0.5), ('softmax', 1 / 7), ('relu', 0)],
)
def test_sb_with_logits_of_zero_shifts_by_a_constant(gate, shift, data):
    sb = ShiftBalance(5, 7, gate=gate, lambda_init=0.25)
    sb.gate.bn2.weight.data.zero_()
    torch.testing.assert_close(sb(*data), data[0] + 0.25 * shift)


def test_the_shift_of_the_default_gate_is_at_most_lambda(sb, data):
    sb.gate.bn2.weight.data.fill_(50)
    trunk, x = data
    shift = (sb(trunk, x) - trunk).abs().amax((0, 2, 3))
    torch.testing.assert_close(shift, sb.lambda_.abs(), rtol=1e-3, atol=1e-3)


def test_lambda_starts_at_a_tenth_for_every_channel():
    assert ShiftBalance(5, 7).lambda_.tolist() == pytest.approx([0.1] * 7)
    assert ShiftBalance(5, 3, lambda_init=2).lambda_.tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ('kwargs', 'count'),
    [
        # hidden 24: 5 * 24 + 24 * 24 Linear, 2 * (24 + 24) BN, 24 lambda
        (dict(), 816),
        # hidden 24 // 6 = 4: 5 * 4 + 4 * 24, 2 * (4 + 24), 24
        (dict(depthwise=True), 196),
        # hidden 48: 5 * 48 + 48 * 24, 2 * (48 + 24), 24
        (dict(hidden_multiplier=2), 1560),
    ],
    ids=repr,
)
def test_sb_has_exactly_its_parameters(kwargs, count, parameter_count):
    assert parameter_count(ShiftBalance(5, 24, **kwargs)) == count


@pytest.mark.parametrize('gate', list(GATES))
def test_every_parameter_gets_a_gradient(gate, data, randomise, all_gradients):
    sb = randomise(ShiftBalance(5, 7, gate=gate)).train()
    out = sb(*data)
    (out * torch.randn_like(out)).sum().backward()
    assert all_gradients(sb) == []


def test_one_training_image_leaves_the_statistics_alone(
    sb, data, all_gradients
):
    trunk, x = (t[:1] for t in data)
    before = {k: v.clone() for k, v in sb.named_buffers()}
    out = sb.train()(trunk, x)
    (out * torch.randn_like(out)).sum().backward()
    assert all_gradients(sb) == []
    torch.testing.assert_close(out, sb.eval()(trunk, x))
    for name, value in sb.named_buffers():
        assert value.equal(before[name]), name


def test_dropout_reaches_the_gate():
    assert ShiftBalance(5, 7, dropout=0.3).gate.dropout.p == 0.3


def test_sb_keeps_the_type_of_the_trunk(sb, data):
    trunk, x = data
    out = sb.eval()(trunk.bfloat16(), x)
    assert out.dtype == torch.bfloat16


def test_sb_keeps_channels_last(sb, data, is_channels_last):
    last = [t.to(memory_format=torch.channels_last) for t in data]
    out = sb.eval()(*last)
    assert is_channels_last(out)
    torch.testing.assert_close(out, sb(*data))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(gate='Tanh'), "'tanh', 'sigmoid', 'softmax', 'relu', 'none'"),
        (dict(gate=None), "gate must be one of 'tanh'"),
        (dict(lambda_init=-0.1), r'lambda_init must be .* \[0, inf\)'),
        (dict(lambda_init=float('nan')), 'lambda_init must be a number'),
        (dict(lambda_init='0.1'), 'lambda_init must be a number'),
        (dict(hidden_multiplier=-1), r'hidden_multiplier .* \(0, inf\)'),
    ],
    ids=repr,
)
def test_arguments_out_of_range_name_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ShiftBalance(4, 4, **kwargs)
