"""What the tests of the networks share: random weights, and the gate."""

import pytest
import torch
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


def _normalise(z, bn, training):
    mean, var = bn.running_mean, bn.running_var
    if training:
        mean, var = z.mean(0), ((z - z.mean(0)) ** 2).mean(0)
    return (z - mean) / (var + bn.eps) ** 0.5 * bn.weight + bn.bias


def _gate_formula(gate, x, training=False):
    """BN(W2 relu(BN(W1 GAP(x)))) from plain arithmetic; also relu's input."""
    n, c, h, w = x.shape
    pooled = torch.stack([x[:, i].reshape(n, -1).sum(1) for i in range(c)], 1)
    z = pooled / (h * w) @ gate.fc1.weight.T
    if gate.fc1.bias is not None:
        z = z + gate.fc1.bias
    z = _normalise(z, gate.bn1, training)
    y = torch.where(z > 0, z, torch.zeros_like(z)) @ gate.fc2.weight.T
    if gate.fc2.bias is not None:
        y = y + gate.fc2.bias
    return _normalise(y, gate.bn2, training), z


def _parameter_count(module):
    return sum(p.numel() for p in module.parameters())


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
    return _parameter_count


@pytest.fixture
def all_gradients():
    """Return the names of the parameters that have no gradient."""

    def without_gradient(module):
        return [
            name
            for name, p in module.named_parameters()
            if p.grad is None or not p.grad.abs().sum() > 0
        ]

    return without_gradient


@pytest.fixture
def is_channels_last():
    def check(x):
        last = x.is_contiguous(memory_format=torch.channels_last)
        return last and not x.is_contiguous()

    return check


@pytest.fixture
def gate_dtypes():
    """Record the types that the parts of every gate give out."""
    from sb_mm.models.layers import ChannelGate

    def watch(module):
        seen = set()
        for part in module.modules():
            if isinstance(part, ChannelGate):
                for child in [part, *part.children()]:
                    child.register_forward_hook(
                        lambda _, args, out: seen.update(
                            {out.dtype, args[0].dtype}
                            if args[0].dim() == 2
                            else {out.dtype}
                        )
                    )
        return seen

    return watch
