"""The gate F(x) = BN(W2 relu(BN(W1 GAP(x))))."""

import pytest
import torch
from torch import nn

from sb_mm.models.layers import ChannelGate, GateBatchNorm1d


@pytest.fixture
def gate(randomise):
    return randomise(ChannelGate(5, 16, 7), scale=3.0)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(6, 5, 3, 4) * 4 + 1


@pytest.mark.parametrize('training', [False, True])
def test_gate_is_the_formula_of_the_paper(gate, x, gate_formula, training):
    expected, relu_input = gate_formula(gate, x, training)
    # Both sides of ReLU, and far enough to tell it from ReLU6.
    assert relu_input.min() < -1
    assert relu_input.max() > 6.5
    torch.testing.assert_close(
        gate.train(training)(x), expected, rtol=1e-4, atol=1e-4
    )


def test_linear_layers_with_a_bias_add_it(randomise, x, gate_formula):
    gate = randomise(ChannelGate(5, 16, 7, bias=True)).eval()
    torch.testing.assert_close(
        gate(x), gate_formula(gate, x)[0], rtol=1e-4, atol=1e-4
    )


def test_gate_with_a_second_norm_of_zero_weight_gives_its_bias(gate, x):
    gate.bn2.weight.data.zero_()
    expected = gate.bn2.bias.expand(6, 7)
    torch.testing.assert_close(gate.eval()(x), expected)


def test_gate_depends_on_nothing_but_the_mean_over_the_pixels(gate, x):
    gate.eval()
    shuffled = x.flatten(2)[:, :, torch.randperm(12)].view_as(x)
    torch.testing.assert_close(gate(shuffled), gate(x))
    means = x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(gate(means), gate(x))


@pytest.mark.parametrize(
    ('bias', 'count'),
    [
        # 5 * 16 + 16 * 7 Linear, 2 * 16 + 2 * 7 BN
        (False, 238),
        # and 16 + 7 biases
        (True, 261),
    ],
)
def test_gate_has_exactly_its_parameters(bias, count, parameter_count):
    assert parameter_count(ChannelGate(5, 16, 7, bias=bias)) == count


@pytest.mark.parametrize('batch', [1, 6])
def test_every_parameter_of_the_gate_gets_a_gradient(
    gate, x, all_gradients, batch
):
    out = gate.train()(x[:batch])
    (out * torch.randn_like(out)).sum().backward()
    assert all_gradients(gate) == []


def test_one_image_is_normalised_with_running_statistics(
    gate, x, gate_formula
):
    before = {k: v.clone() for k, v in gate.state_dict().items()}
    out = gate.train()(x[:1])
    torch.testing.assert_close(
        out, gate_formula(gate, x[:1])[0], rtol=1e-4, atol=1e-4
    )
    for name, value in gate.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_more_images_move_the_running_statistics():
    bn = GateBatchNorm1d(2, momentum=0.5).train()
    bn(torch.tensor([[0.0, 2.0], [4.0, 2.0]]))
    # half of the old value and half of the batch's (unbiased variance 8)
    assert bn.running_mean.tolist() == [1.0, 0.5 * 2]
    assert bn.running_var.tolist() == [0.5 + 4.0, 0.5]
    assert bn.num_batches_tracked == 1


def test_dropout_drops_hidden_units_in_training_only(gate):
    dropped = ChannelGate(5, 16, 7, dropout=0.5)
    dropped.load_state_dict(gate.state_dict())
    # Linear beyond the dropout, so that kept units show as doubled.
    hidden = {}
    dropped.fc2.register_forward_pre_hook(
        lambda _, args: hidden.update(units=args[0])
    )
    torch.manual_seed(0)
    x = torch.randn(64, 5, 2, 2)
    dropped.eval()(x)
    kept = hidden['units']
    torch.testing.assert_close(dropped(x), gate.eval()(x))

    dropped.bn1.eval()
    dropped.dropout.train()
    dropped(x)
    active = kept > 0
    ratio = (hidden['units'][active] / kept[active]).round(decimals=4)
    assert set(ratio.tolist()) == {0.0, 2.0}
    assert 0.4 < (ratio == 0).float().mean() < 0.6


def test_no_dropout_is_no_module_that_draws_random_numbers():
    assert isinstance(ChannelGate(5, 16, 7).dropout, nn.Identity)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_gate_computes_in_float32_under_autocast(gate, x, gate_dtypes, dtype):
    seen = gate_dtypes(gate.eval())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = gate(x.to(dtype))
    assert seen == {torch.float32}
    torch.testing.assert_close(out, gate(x.to(dtype).float()))


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_a_converted_gate_computes_in_its_own_type(gate, x, dtype):
    assert gate.to(dtype).eval()(x.to(dtype)).dtype == dtype
