"""The gate F(x), and T(x) * sigmoid(F(x)) and T(x) + lambda * g(F(x))."""

import pytest
import torch
from torch import nn

from sb_mm.models.layers import ChannelGate, ShiftBalance, SqueezeExcite

KINDS = pytest.mark.parametrize('kind', [SqueezeExcite, ShiftBalance])
GATES = {
    'tanh': lambda z: (z.exp() - (-z).exp()) / (z.exp() + (-z).exp()),
    'sigmoid': lambda z: 1 / (1 + (-z).exp()),
    'softmax': lambda z: z.exp() / z.exp().sum(1, keepdim=True),
    'relu': lambda z: torch.where(z > 0, z, 0),
    'none': lambda z: z,
}
EVERY = pytest.mark.parametrize('name', ['se', *GATES])


def build(name, **kwargs):
    if name == 'se':
        return SqueezeExcite(5, 7, **kwargs)
    return ShiftBalance(5, 7, gate=name, **kwargs)


@pytest.fixture
def gate(randomise):
    return randomise(ChannelGate(5, 16, 7), scale=3.0)


@pytest.fixture
def data():
    torch.manual_seed(1)
    return torch.randn(9, 7, 2, 3), torch.randn(9, 5, 4, 5) * 4 + 1


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(
    'kwargs', [{}, dict(gate_offset=4), dict(gate_norm=False)], ids=repr
)
@EVERY
def test_attention_is_the_formula_of_the_paper(
    name, kwargs, training, data, randomise, gate_formula
):
    attention = randomise(build(name, **kwargs), 2.0).train(training).double()
    trunk, x = (t.double() for t in data)
    z, relu_input = gate_formula(attention.gate, x, training)
    # Both sides of ReLU and of the gates, and far enough to tell ReLU6.
    assert relu_input.min() < -1
    assert relu_input.max() > 6
    assert z.min() < -0.5
    assert z.max() > 0.5
    z = z + kwargs.get('gate_offset', 0)
    if name == 'se':
        expected = trunk * GATES['sigmoid'](z)[:, :, None, None]
    else:
        shift = attention.lambda_ * GATES[name](z)
        expected = trunk + shift[:, :, None, None]
    torch.testing.assert_close(attention(trunk, x), expected)
    # What the attention statistics watch.
    torch.testing.assert_close(attention.gate(x), z)


def test_dropout_drops_hidden_units_in_training_only(gate):
    dropped = ChannelGate(5, 16, 7, dropout=0.5)
    dropped.load_state_dict(gate.state_dict())
    seen = []
    dropped.dropout.register_forward_hook(
        lambda _, args, out: seen.append((args[0], out))
    )
    x = torch.randn(64, 5, 2, 2)
    torch.testing.assert_close(dropped.eval()(x), gate.eval()(x))
    dropped.dropout.train()
    dropped(x)
    hidden, kept = seen[-1]
    ratio = (kept / hidden)[hidden > 0].round(decimals=4)
    assert set(ratio.tolist()) == {0.0, 2.0}
    assert 0.4 < (ratio == 0).float().mean() < 0.6


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.half])
def test_gate_computes_in_float32_under_autocast(gate, data, dtype):
    x, seen = data[1].to(dtype).requires_grad_(), set()
    for part in gate.children():
        part.register_forward_hook(
            lambda _, args, out: seen.update({args[0].dtype, out.dtype})
        )
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = gate(x)
    assert seen == {torch.float32}
    torch.testing.assert_close(out, gate(x.float()))
    (gradient,) = torch.autograd.grad(out[:, 0].sum(), x)
    assert gradient.dtype == dtype
    assert gradient.stride()[2:] == (0, 0)  # it takes no memory


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_a_converted_gate_computes_in_its_own_type(gate, dtype):
    # Whose sum is beyond the largest number of half precision.
    x = torch.full((2, 5, 64, 64), 30.0)
    out = gate.to(dtype).eval()(x.to(dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()


@pytest.mark.parametrize('norm', [True, False])
def test_a_quantised_gate_computes_almost_the_same(norm, data):
    torch.manual_seed(0)
    gate = ChannelGate(5, 16, 7, norm=norm).eval()
    x = data[1]
    quantised = torch.ao.quantization.quantize_dynamic(gate, {nn.Linear})
    assert type(quantised.fc1) is not nn.Linear
    torch.testing.assert_close(quantised(x), gate(x), rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ('kwargs', 'hidden'),
    [
        (dict(), 24),
        (dict(depthwise=True), 4),  # 24 // 6
        # 24 // 5 * 3, not 24 * 3 // 5
        (
            dict(depthwise=True, depthwise_reduction=5, hidden_multiplier=3),
            12,
        ),
        (dict(depthwise_reduction=24), 24),  # not depthwise
        (dict(hidden_multiplier=0.01), 1),
    ],
    ids=str,
)
def test_se_and_sb_have_exactly_their_parameters(
    kwargs, hidden, parameter_count
):
    weights, units = 5 * hidden + hidden * 24, hidden + 24
    plain = SqueezeExcite(5, 24, gate_norm=False, **kwargs)
    assert parameter_count(plain) == weights + units
    count = weights + 2 * units
    assert parameter_count(SqueezeExcite(5, 24, **kwargs)) == count
    assert parameter_count(ShiftBalance(5, 24, **kwargs)) == count + 24


@KINDS
def test_gradients_once_and_twice(kind, randomise):
    attention = randomise(kind(3, 4)).train().double()
    x = torch.randn(8, 3, 2, 2).double().requires_grad_()
    trunk = torch.randn(8, 4, 2, 1).double().requires_grad_()
    leaves = trunk, x, *attention.parameters()

    def forward(*_):
        return attention(trunk, x)

    assert torch.autograd.gradcheck(forward, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(forward, leaves, fast_mode=True)


@pytest.mark.parametrize('training', [False, True])
@KINDS
def test_type_and_memory_format_are_the_trunk_s(kind, training, data):
    attention = kind(5, 7).train(training)
    trunk, x = data
    assert attention(trunk.bfloat16(), x).dtype == torch.bfloat16
    last = [t.to(memory_format=torch.channels_last) for t in data]
    out = attention(*last)
    assert out.stride(1) == 1
    torch.testing.assert_close(out, attention(*data))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(in_channels=0), r'in_channels must be an integer in \[1'),
        (dict(out_channels=2.0), r'out_channels must be an integer in \[1'),
        (dict(depthwise_reduction=0), r'depthwise_reduction .* \[1, inf\)'),
        (dict(hidden_multiplier=0), r'hidden_multiplier .* \(0, inf\)'),
        (dict(dropout=1.0), r'dropout must be a number in \[0, 1\)'),
        (dict(gate_offset=None), 'gate_offset must be a number'),
        (dict(gate='Tanh'), "'tanh', 'sigmoid', 'softmax', 'relu', 'none'"),
        (dict(lambda_init=-0.1), r'lambda_init must be .* \[0, inf\)'),
        (dict(lambda_init=float('nan')), 'lambda_init must be a number'),
    ],
    ids=repr,
)
def test_arguments_out_of_range_name_what_is_allowed(kwargs, message):
    kwargs = dict(in_channels=4, out_channels=4) | kwargs
    with pytest.raises(ValueError, match=message):
        ShiftBalance(**kwargs)
