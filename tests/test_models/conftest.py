"""What the tests of the networks share: random weights, and the gate."""

import pytest
import torch
import torch.multiprocessing as mp
from torch.nn.modules.batchnorm import _BatchNorm


@pytest.fixture(scope='session', autouse=True)
def _one_thread():
    """Tiny tensors lose more to waiting threads than these give them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _randomise(module, scale=1.0, seed=0):
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, scale)
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module


def _linear(layer, x):
    bias = 0 if layer.bias is None else layer.bias
    return (x[:, None] * layer.weight).sum(2) + bias


def _normalise(z, bn, training):
    if isinstance(bn, torch.nn.Identity):
        return z
    mean, var = bn.running_mean, bn.running_var
    if training:
        mean, var = z.mean(0), ((z - z.mean(0)) ** 2).mean(0)
    return (z - mean) / (var + bn.eps) ** 0.5 * bn.weight + bn.bias


def _gate_formula(gate, x, training=False):
    """BN(W2 relu(BN(W1 GAP(x)))) from plain arithmetic; also relu's input."""
    pooled = x.flatten(2).sum(2) / x[0, 0].numel()
    z = _normalise(_linear(gate.fc1, pooled), gate.bn1, training)
    y = _linear(gate.fc2, torch.where(z > 0, z, 0))
    return _normalise(y, gate.bn2, training), z


@pytest.fixture
def randomise():
    """Give every parameter and running statistic a random value."""
    return _randomise


@pytest.fixture
def gate_formula():
    """Write the paper's F(x) again: logits, and what its ReLU gets."""
    return _gate_formula


@pytest.fixture
def parameter_count():
    return lambda module: sum(p.numel() for p in module.parameters())


def _in_process(rank, address, function, found):
    torch.distributed.init_process_group(
        'gloo', address, rank=rank, world_size=2
    )
    found[rank] = function(rank)
    torch.distributed.destroy_process_group()


@pytest.fixture
def in_two_processes(tmp_path):
    """Call a function of the rank in two processes; return its results."""

    def run(function):
        found = mp.Manager().dict()
        mp.start_processes(
            _in_process,
            (f'file://{tmp_path / "store"}', function, found),
            nprocs=2,
            start_method='fork',  # a new Python would import all for 10 s
        )
        return found[0], found[1]

    return run
