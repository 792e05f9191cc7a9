"""Batch normalisation of few values a channel, alone and in two processes."""

import copy

import pytest
import torch
from mmengine.model import convert_sync_batchnorm
from torch import nn

from sb_mm.models.layers import ChannelGate, GateBatchNorm1d, LevelBatchNorm2d
from sb_mm.registry import MODELS


def values(n, seed=1):
    torch.manual_seed(seed)
    return torch.randn(n, 5, 3, 4) * 4 + 1


@pytest.mark.parametrize('n', [8, 9, 32, 128])
def test_eight_values_and_more_are_pytorch_s_to_the_last_bit(n, randomise):
    ours = randomise(GateBatchNorm1d(5)).train()
    theirs = nn.BatchNorm1d(5)
    theirs.load_state_dict(ours.state_dict())
    outs = []
    for norm in (ours, theirs):
        x = values(n).mean((2, 3)).requires_grad_()
        out = norm(x)
        (
            out * torch.linspace(-1, 2, out.numel()).view_as(out)
        ).sum().backward()
        stats = norm.running_mean, norm.running_var
        outs.append([out, x.grad, norm.weight.grad, *stats])
    assert all(a.equal(b) for a, b in zip(*outs, strict=True))


@pytest.mark.parametrize('n', [1, 2, 3, 7])
def test_fewer_are_normalised_with_statistics_that_they_update(n, randomise):
    norm = randomise(GateBatchNorm1d(5, momentum=0.25)).train()
    x = values(n).mean((2, 3)).requires_grad_()
    old, old_var = norm.running_mean.clone(), norm.running_var.clone()
    out = norm(x)
    mean = 0.75 * old + 0.25 * x.mean(0)
    var = 0.75 * old_var + 0.25 * ((x - old) ** 2).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)
    scale = norm.weight / (var + norm.eps) ** 0.5
    torch.testing.assert_close(out, (x - mean) * scale + norm.bias)
    # In the backward pass, the statistics are constants.
    out.sum().backward()
    torch.testing.assert_close(x.grad, scale.detach().expand(n, 5))
    torch.testing.assert_close(norm.eval()(x), out)


def test_a_level_counts_its_pixels(randomise):
    norm = randomise(
        MODELS.build(dict(type='LevelBatchNorm2d', num_features=5))
    )
    assert type(norm) is LevelBatchNorm2d
    plain = nn.BatchNorm2d(5)
    plain.load_state_dict(norm.state_dict())
    x = values(1)
    assert norm.train()(x).equal(plain(x))
    few = x[:, :, :1, :3]
    out = norm(few)
    torch.testing.assert_close(out, norm.eval()(few))
    assert not norm.running_mean.equal(plain.running_mean)


def test_frozen_norms_and_those_without_statistics_are_pytorch_s(randomise):
    frozen = randomise(GateBatchNorm1d(5)).eval()
    before = frozen.running_mean.clone()
    frozen(torch.randn(2, 5))
    assert frozen.running_mean.equal(before)
    x = torch.randn(2, 5, 1, 1)
    norm = LevelBatchNorm2d(5, track_running_stats=False)
    assert norm(x).equal(nn.BatchNorm2d(5, track_running_stats=False)(x))


def test_recomputed_activations_are_no_new_batch(randomise):
    """Checkpointing runs the forward pass again within the backward one."""
    norm = randomise(GateBatchNorm1d(5)).train()
    x, seen = torch.randn(2, 5, requires_grad=True), []
    expected = norm.running_mean.lerp(x.detach().mean(0), norm.momentum)

    def layer(x):
        seen.append(norm(x))
        return seen[-1].sin()

    out = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    out.sum().backward()
    torch.testing.assert_close(*seen)
    torch.testing.assert_close(norm.running_mean, expected)


# ---- several processes -------------------------------------------------


def one_step(gate, x):
    out = gate(x)
    buffers = gate.named_buffers()
    return [out.detach(), *(b.clone() for n, b in buffers if 'running' in n)]


def test_the_gates_of_two_processes_have_one_batch(
    in_two_processes, randomise
):
    """With SyncBatchNorm, which itself needs a GPU."""
    gate, x = randomise(ChannelGate(5, 16, 7)).train(), values(4)
    expected = one_step(copy.deepcopy(gate), x)
    synchronised = convert_sync_batchnorm(gate).train()
    found = in_two_processes(
        lambda rank: one_step(synchronised, x.chunk(2)[rank])
    )
    outs, *stats = zip(*found, strict=True)
    torch.testing.assert_close(torch.cat(outs), expected[0])
    for pair, statistic in zip(stats, expected[1:], strict=True):
        torch.testing.assert_close(pair, (statistic, statistic))


@pytest.mark.parametrize(
    'convert',
    [nn.SyncBatchNorm.convert_sync_batchnorm, convert_sync_batchnorm],
)
def test_converted_gates_leave_larger_batches_to_sync_batch_norm(
    convert, monkeypatch, randomise
):
    gate = randomise(ChannelGate(5, 16, 7)).train()
    x = values(9)
    expected = one_step(copy.deepcopy(gate), x)
    synchronised = convert(gate).train()
    torch.testing.assert_close(one_step(synchronised, x), expected)
    # 4 images in each of 2 processes are 8.
    monkeypatch.setattr(
        'sb_mm.models.layers.norm.get_world_size', lambda group: 2
    )
    monkeypatch.setattr(nn.SyncBatchNorm, 'forward', lambda *_: 'synchronised')
    assert synchronised.bn1(torch.randn(4, 16)) == 'synchronised'
    assert synchronised.bn1(torch.randn(3, 16)).shape == (3, 16)
