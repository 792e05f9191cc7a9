"""The fused gate against the plain one in float64.

The kernels need a CUDA device or Triton's interpreter, which has to be chosen
before they are imported: without a device, a process of its own runs these
tests, and those of the kernels themselves, under ``TRITON_INTERPRET=1``.
"""

import copy
import os
import subprocess
import sys
from itertools import count, cycle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from sb_mm.models.layers import (
    AttentionConvModule,
    ChannelAttention,
    ShiftBalance,
    SqueezeExcite,
    attention,
)
from sb_mm.registry import MODELS

triton = pytest.importorskip('triton')
fused_gate = pytest.importorskip('sb_mm.models.layers.fused_gate')
pixel_kernels = pytest.importorskip('sb_mm.models.layers.pixel_kernels')
gate_kernels = pytest.importorskip('sb_mm.models.layers.gate_kernels')

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
pytestmark = pytest.mark.gpu
needs_kernels = pytest.mark.skipif(
    DEVICE == 'cpu' and not INTERPRETED, reason='run in the interpreter'
)
NETWORKS = (
    ('MobileNetV2', 0.35),
    ('MobileNetV2', 1.0),
    ('MnasNet', 1.0),
    ('ShuffleNetV2', 1.0),
)
LAYOUTS = torch.contiguous_format, torch.channels_last
ACTIVATIONS = None, 'ReLU', 'ReLU6'
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.half: 2e-3}


@pytest.mark.skipif(
    DEVICE == 'cuda' or INTERPRETED, reason='the kernels run in this process'
)
def test_in_the_interpreter():
    environment = {**os.environ, 'TRITON_INTERPRET': '1'}
    files = map(str, Path(__file__).parent.glob('test_*_kernels.py'))
    command = [sys.executable, '-m', 'pytest', __file__, *files, '-q', '-x']
    done = subprocess.run(
        [*command, '-p', 'no:xdist', '-p', 'no:cacheprovider'],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the values --------------------------------------------------------


class Case:
    """A fused attention and the plain one in float64 beside it."""

    def __init__(
        self, kind, channels, n, dtype=torch.float, activation=None, **kwargs
    ):
        inputs, hidden, outputs = channels
        fused = kind(inputs, outputs, fused=True, **kwargs)
        fused.gate.fc1 = nn.Linear(inputs, hidden, bias=False)
        fused.gate.bn1 = type(fused.gate.bn1)(hidden)
        fused.gate.fc2 = nn.Linear(hidden, outputs, bias=False)
        for seed in count():
            torch.manual_seed(seed)
            for parameter in fused.parameters():
                parameter.data.normal_()
            for norm in fused.gate.bn1, fused.gate.bn2:
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
            x = (torch.randn(n, inputs, 3, 2) * 2 + 1).to(dtype)
            trunk, gradient = torch.randn(2, n, outputs, 2, 2).to(dtype)
            plain = copy.deepcopy(fused).double()
            plain.fused = False
            if self._has_margin(plain, trunk.double(), x.double()):
                break
        self.dtype, self.plain, self.fused = dtype, plain, fused.to(DEVICE)
        self.data, self.activation = (trunk, x, gradient), activation

    @staticmethod
    def _has_margin(module, trunk, x):
        """Tell whether no unit is so near to ReLU's kink as to tip over."""
        module = copy.deepcopy(module)
        y, gate = module(trunk, x), module.gate
        hidden = gate.bn1(gate.fc1(x.mean((2, 3))))
        logits = gate.bn2(gate.fc2(hidden.relu()))
        return min(v.abs().min() for v in (y, hidden, logits)) > 3e-6

    def check(self):
        expected = self._results(self.plain, torch.float64, 'cpu')
        with torch.autocast(DEVICE, torch.bfloat16, self.dtype != torch.float):
            results = self._results(self.fused, self.dtype, DEVICE)
        for name, value in expected.items():
            error = (results[name].cpu().double() - value).abs().max()
            wide = 'running' in name or 'batches' in name
            bound = TOLERANCE[torch.float32 if wide else self.dtype]
            assert error <= bound * value.abs().max(), (name, float(error))

    def _results(self, module, dtype, device):
        trunk, x, gradient = (t.to(device, dtype) for t in self.data)
        x.requires_grad_()
        trunk.requires_grad_()
        assert fused_gate.applies(module.gate, trunk, x) == module.fused
        y = module(trunk, x, self.activation)
        y.backward(gradient)
        gradients = {n: p.grad for n, p in module.named_parameters()}
        buffers = dict(module.named_buffers())
        values = dict(y=y.detach(), x=x.grad, trunk=trunk.grad)
        assert {values[k].dtype for k in values} == {dtype}
        return {**values, **gradients, **buffers}


@needs_kernels
@pytest.mark.parametrize('gate', attention.GATES)
def test_gating_functions(gate):
    Case(ShiftBalance, (5, 18, 37), 11, gate=gate).check()


@needs_kernels
@pytest.mark.parametrize('dtype', TOLERANCE)
def test_precisions(dtype):
    Case(ShiftBalance, (37, 18, 5), 11, dtype, nn.ReLU()).check()
    kwargs = dict(activation=nn.ReLU6(), gate_offset=4)
    Case(SqueezeExcite, (40, 5, 40), 11, dtype, **kwargs).check()


@needs_kernels
@pytest.mark.parametrize('n', [8, 37, 130, 256])
def test_rows(n):
    Case(ShiftBalance, (34, 17, 18), n).check()


@pytest.fixture
def wide_blocks(monkeypatch):
    """Let the interpreter take fewer steps."""
    if INTERPRETED:
        monkeypatch.setattr(gate_kernels, 'BLOCK', dict(COLS=256, K=256))
        tiles = dict.fromkeys([False, True], (64, 2048))
        monkeypatch.setattr(pixel_kernels, 'TILES', tiles)


@needs_kernels
def test_every_layer_of_the_networks(wide_blocks):
    layers = set()
    for network, width in NETWORKS:
        cfg = dict(type=f'sb_mm.Attention{network}', widen_factor=width)
        cfg['attention'] = dict(type='sb_mm.ShiftBalance')
        with torch.device('meta'):
            parts = MODELS.build(cfg).modules()
        gates = [p.gate for p in parts if isinstance(p, ChannelAttention)]
        layers |= {(*g.fc1.weight.shape[::-1], len(g.bn2.bias)) for g in gates}
    for channels, n in zip(sorted(layers), cycle([8, 13, 60])):
        Case(ShiftBalance, channels, n).check()


@needs_kernels
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('kind', ['ShiftBalance', 'SqueezeExcite'])
def test_a_convolution_with_its_activation(
    kind, activation, layout, monkeypatch
):
    # Several parts of a sum over 35 pixels.
    tiles = dict.fromkeys([False, True], (16, 8))
    monkeypatch.setattr(pixel_kernels, 'TILES', tiles)
    torch.manual_seed(0)
    fused = AttentionConvModule(
        6, 10, 3, norm_cfg=dict(type='BN'),
        act_cfg=activation and dict(type=activation),
        attention=dict(type=f'sb_mm.{kind}', fused=True),
    ).to(DEVICE)  # fmt: skip
    fused.bn.weight.data *= 4
    plain = copy.deepcopy(fused)
    plain.attention.fused = False
    x = torch.randn(9, 6, 7, 9, device=DEVICE).to(memory_format=layout)
    gradient = torch.randn(9, 10, 5, 7, device=DEVICE)
    results = []
    for module in fused, plain:
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.backward(gradient)
        gradients = [p.grad for p in module.parameters()]
        results.append([y, leaf.grad, *gradients, *module.buffers()])
    for value, expected in zip(*results, strict=True):
        error = (value - expected).abs().max()
        assert error <= 1e-3 * expected.abs().max()


# ---- where the plain form stays ----------------------------------------


def _hooked(module):
    module.gate.bn2.register_forward_hook(lambda *_: None)


def _synchronised(module):
    module.gate = nn.SyncBatchNorm.convert_sync_batchnorm(module.gate)


@needs_kernels
@pytest.mark.parametrize(
    ('change', 'n', 'kwargs'),
    [
        (None, 7, {}),
        (None, 257, {}),
        (nn.Module.eval, 9, {}),
        (nn.Module.double, 9, {}),
        (nn.Module.half, 9, {}),
        (lambda m: m.gate.bn1.eval(), 9, {}),
        (lambda m: setattr(m.gate.bn1, 'momentum', None), 9, {}),
        (_hooked, 9, {}),
        (_synchronised, 9, {}),
        (None, 9, dict(dropout=0.5)),
        (None, 9, dict(gate_norm=False)),
    ],
)
def test_what_is_not_fused(change, n, kwargs):
    module = ShiftBalance(6, 10, fused=True, **kwargs)
    x = torch.randn(n, 6, 2, 2, device=DEVICE)
    usual = torch.randn(9, 6, 2, 2, device=DEVICE)
    assert kwargs or fused_gate.applies(module.to(DEVICE).gate, usual, usual)
    if change is not None:
        change(module)
    assert not fused_gate.applies(module.gate, x, x)


@needs_kernels
def test_few_images_give_the_plain_result():
    trunk, x = torch.randn(2, 4, 6, 3, 3, device=DEVICE)
    plain = ShiftBalance(6, 6).to(DEVICE)
    fused = ShiftBalance(6, 6, fused=True).to(DEVICE)
    fused.load_state_dict(plain.state_dict())
    assert torch.equal(fused(trunk, x), plain(trunk, x))


@needs_kernels
@pytest.mark.parametrize('part', ['activate', 'attention'])
def test_a_hook_sees_the_plain_steps(part, layer):
    seen = []
    assert attention.takes(layer.attention, layer.activate)
    getattr(layer, part).register_forward_hook(
        lambda module, args, output: seen.append(output.min())
    )
    layer(torch.randn(9, 6, 4, 4, device=DEVICE))
    assert (seen[0] < 0) == (part == 'attention')


def test_the_argument_stands_above_the_environment(monkeypatch):
    monkeypatch.delenv('SB_MM_FUSED_GATE', raising=False)
    assert not SqueezeExcite(4, 4).fused
    monkeypatch.setenv('SB_MM_FUSED_GATE', '1')
    assert SqueezeExcite(4, 4).fused
    assert not SqueezeExcite(4, 4, fused=False).fused
    monkeypatch.setattr(attention, 'fused_gate', None)
    assert not SqueezeExcite(4, 4).fused
    with pytest.warns(UserWarning, match='fused=True has no effect without'):
        assert not SqueezeExcite(4, 4, fused=True).fused


# ---- in a training -----------------------------------------------------


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return AttentionConvModule(
        6, 10, 1, attention=dict(type='sb_mm.ShiftBalance', fused=True)
    ).to(DEVICE)


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return torch.randn(2, 9, 6, 4, 4, device=DEVICE, requires_grad=True)


def _gradients(module, losses):
    module.zero_grad()
    for loss in losses:
        loss.backward()
    return [p.grad.clone() for p in module.parameters()]


def _loss(module, x):
    return (module(x) - 0.5).square().mean()


@needs_kernels
def test_two_passes_before_one_backward(layer, batches):
    """Gradients also accumulate, and the passes do not share memory."""
    separate = [_gradients(layer, [_loss(layer, x)]) for x in batches]
    together = _gradients(layer, [sum(_loss(layer, x) for x in batches)])
    kept = [_loss(layer, x) for x in batches]
    accumulated = _gradients(layer, reversed(kept))
    for a, b, *parts in zip(together, accumulated, *separate, strict=True):
        torch.testing.assert_close(a, sum(parts))
        torch.testing.assert_close(b, sum(parts))


@needs_kernels
def test_checkpointing_computes_the_same(layer, batches):
    expected = _gradients(layer, [_loss(layer, batches[0])])
    y = checkpoint(_loss, layer, batches[0], use_reentrant=False)
    for a, b in zip(_gradients(layer, [y]), expected, strict=True):
        torch.testing.assert_close(a, b)


@needs_kernels
def test_a_compiled_network_has_no_graph_break(layer, batches):
    plain = copy.deepcopy(layer)
    expected = _gradients(layer, [_loss(layer, batches[0])])
    compiled = torch.compile(plain, fullgraph=True, backend='aot_eager')
    gradients = _gradients(plain, [_loss(compiled, batches[0])])
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(plain.buffers(), layer.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@needs_kernels
def test_a_second_derivative_is_refused(layer, batches):
    x = batches[0].detach().requires_grad_()
    (slope,) = torch.autograd.grad(_loss(layer, x), x, create_graph=True)
    with pytest.raises(RuntimeError, match='differentiate twice'):
        slope.sum().backward()


@needs_kernels
def test_frozen_weights_and_images(layer, batches):
    expected = _gradients(layer, [_loss(layer, batches[0])])[-1]
    layer.zero_grad()
    layer.requires_grad_(False).attention.gate.bn2.bias.requires_grad_()
    _loss(layer, batches[0].detach()).backward()
    gradient = layer.attention.gate.bn2.bias.grad
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        assert not layer(batches[0]).requires_grad


class Calls(TorchDispatchMode):
    """Counts the calls that make a device work."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith('empty'):
            self.names.append(name)
        return func(*args, **kwargs or {})


@needs_kernels
@pytest.mark.parametrize('activation', [None, nn.ReLU()])
@pytest.mark.parametrize('kind', [ShiftBalance, SqueezeExcite])
def test_an_attention_is_a_handful_of_calls(kind, activation):
    module = kind(6, 10, fused=True).to(DEVICE)
    x = torch.randn(9, 6, 4, 4, device=DEVICE, requires_grad=True)
    trunk = torch.randn(9, 10, 4, 4, device=DEVICE, requires_grad=True)
    with Calls() as calls:
        y = module(trunk, x, activation)
    assert len(calls.names) == 4, calls.names
    # Other branches gave gradients, to which these are added.
    x.grad, trunk.grad = torch.zeros_like(x), torch.zeros_like(trunk)
    gradient = torch.randn_like(y)
    with Calls() as calls:
        y.backward(gradient)
    assert len(calls.names) == 6, calls.names
