import copy

import pytest
import torch
from torch import nn

from sb_mm.models.layers import AttentionConvModule, shifted_norm
from sb_mm.models.layers.shifted_norm import (
    can_shift_in_norm,
    shifted_batch_norm,
)

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture
def norm():
    norm = nn.BatchNorm2d(5, momentum=0.3).train()
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return norm


@pytest.fixture
def small_is_worthwhile(monkeypatch):
    monkeypatch.setattr(shifted_norm, '_WORTHWHILE', 0)


def sample(layout=torch.contiguous_format, mean=0.5):
    y = torch.randn(4, 5, 6, 7) * torch.rand(5, 1, 1).add(0.5) + mean
    return y.contiguous(memory_format=layout).requires_grad_()


def gradients(function, *inputs):
    weight = torch.linspace(-1, 2, inputs[0].numel()).view(inputs[0].shape)
    out = function(*inputs)
    return out, torch.autograd.grad((out * weight.to(out)).sum(), inputs)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_it_is_the_norm_plus_the_shift_with_the_same_gradients(norm, layout):
    y, shift = sample(layout), torch.randn(4, 5, requires_grad=True)
    # The formula with PyTorch's own norm, in double precision.
    exact = copy.deepcopy(norm).double()
    expected, expected_grads = gradients(
        lambda y, s, *_: exact(y) + s[:, :, None, None],
        y.detach().double().requires_grad_(),
        shift.detach().double().requires_grad_(),
        exact.weight,
        exact.bias,
    )

    out, grads = gradients(
        lambda y, s, *_: shifted_batch_norm(norm, y, s),
        y,
        shift,
        norm.weight,
        norm.bias,
    )

    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    assert out.is_contiguous(memory_format=layout)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=1e-4)
    for name, buffer in norm.named_buffers():
        torch.testing.assert_close(
            buffer.double(), exact.get_buffer(name).double()
        )


@pytest.mark.parametrize('mean', [30.0, 3000.0])
def test_a_large_mean_does_not_cost_the_variance_its_digits(norm, mean):
    y, shift = sample(mean=mean), torch.zeros(4, 5)
    exact = copy.deepcopy(norm).double()(y.detach().double())

    out = shifted_batch_norm(norm, y, shift)

    # float32 has 2e-4 of a grey level between numbers around 3000.
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-3)


def test_an_activation_in_place_may_follow(norm):
    y, shift = sample(), torch.randn(4, 5, requires_grad=True)
    expected = (copy.deepcopy(norm)(y) + shift[:, :, None, None]).relu()

    out = shifted_batch_norm(norm, y, shift).relu_()
    out.sum().backward()

    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    positive = (expected > 0).sum((2, 3)).float()
    torch.testing.assert_close(shift.grad, positive)


@pytest.mark.usefixtures('small_is_worthwhile')
class TestWhereItApplies:
    def test_training_on_batch_statistics(self, norm):
        assert can_shift_in_norm(norm, sample())

    @pytest.mark.parametrize(
        'change',
        [
            lambda norm: norm.eval(),
            lambda norm: setattr(norm, 'momentum', None),
            lambda norm: setattr(norm, 'track_running_stats', False),
            lambda norm: setattr(norm, 'affine', False),
        ],
    )
    def test_no_other_norm(self, norm, change):
        change(norm)
        assert not can_shift_in_norm(norm, sample())

    def test_no_subclass_whose_forward_is_its_own(self):
        norm = nn.SyncBatchNorm(5).train()
        assert not can_shift_in_norm(norm, sample())

    def test_float32_with_gradients_only(self, norm):
        assert not can_shift_in_norm(norm, sample().bfloat16())
        with torch.no_grad():
            assert not can_shift_in_norm(norm, sample())

    def test_a_layout_without_gaps_only(self, norm):
        assert not can_shift_in_norm(norm, sample()[:, :, ::2])


def shifted_layer(**kwargs):
    attention = dict(type='sb_mm.ShiftBalance', lambda_init=1.0)
    torch.manual_seed(0)
    return AttentionConvModule(
        6, 5, 1, attention=attention, norm_cfg=dict(type='BN'), **kwargs
    ).train()


def count_calls(monkeypatch):
    calls = []
    from sb_mm.models.layers import attention_conv

    def counted(*args):
        calls.append(args)
        return shifted_batch_norm(*args)

    monkeypatch.setattr(attention_conv, 'shifted_batch_norm', counted)
    return calls


@pytest.mark.usefixtures('small_is_worthwhile')
class TestInALayer:
    x = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(1))

    def test_the_layer_is_the_same_with_and_without_it(self, monkeypatch):
        plain, layer = shifted_layer(), shifted_layer()
        calls = count_calls(monkeypatch)
        fused = layer(self.x)
        assert len(calls) == 1

        monkeypatch.setattr(shifted_norm, '_WORTHWHILE', 1 << 30)
        torch.testing.assert_close(fused, plain(self.x), rtol=1e-5, atol=1e-5)
        assert len(calls) == 1

    @pytest.mark.parametrize('place', ['norm', 'attention'])
    def test_a_hook_sees_the_trunk(self, monkeypatch, place):
        layer, calls = shifted_layer(), count_calls(monkeypatch)
        seen = []
        module = getattr(layer, place)
        module.register_forward_hook(lambda *args: seen.append(args))

        layer(self.x)

        assert len(seen) == 1
        assert not calls

    @pytest.mark.parametrize('after', ['conv', 'act'])
    def test_only_behind_the_norm(self, monkeypatch, after):
        calls = count_calls(monkeypatch)

        shifted_layer(attention_after=after)(self.x)

        assert not calls
