"""The fused gate against the plain one in float64.

The kernels need a CUDA device or Triton's interpreter, which has to be chosen
before they are imported: without a device, a process of its own runs these
tests under ``TRITON_INTERPRET=1``.
"""

import copy
import math
import os
import subprocess
import sys
from itertools import count, cycle

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sb_mm.models.layers import (
    AttentionConvModule,
    ChannelAttention,
    ChannelGate,
    ShiftBalance,
    SqueezeExcite,
    attention,
)
from sb_mm.registry import MODELS

triton = pytest.importorskip('triton')
fused_gate = pytest.importorskip('sb_mm.models.layers.fused_gate')
gate_kernels = pytest.importorskip('sb_mm.models.layers.gate_kernels')
launch = pytest.importorskip('sb_mm.models.layers.launch')
pixel_kernels = pytest.importorskip('sb_mm.models.layers.pixel_kernels')

INTERPRETED = launch.INTERPRETED
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
pytestmark = pytest.mark.gpu
needs_kernels = pytest.mark.skipif(
    DEVICE == 'cpu' and not INTERPRETED, reason='run in the interpreter'
)
needs_compiler = pytest.mark.skipif(INTERPRETED, reason='is interpreted')
layouts = pytest.mark.parametrize(
    'layout', [torch.contiguous_format, torch.channels_last]
)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.half: 2e-3}


@pytest.mark.skipif(
    DEVICE == 'cuda' or INTERPRETED, reason='the kernels run in this process'
)
def test_in_the_interpreter():
    command = [sys.executable, '-m', 'pytest', __file__, '-q', '-x']
    done = subprocess.run(
        [*command, '-p', 'no:xdist', '-p', 'no:cacheprovider'],
        env={**os.environ, 'TRITON_INTERPRET': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the values --------------------------------------------------------


@pytest.fixture
def agree(randomise):
    """Compare a fused attention with the plain one in float64."""

    def check(
        kind, channels, n, dtype=torch.float, layout=torch.preserve_format,
        activation=None, **kwargs,
    ):  # fmt: skip
        inputs, _, outputs = channels
        fused = kind(inputs, outputs, fused=True, **kwargs)
        fused.gate = ChannelGate(*channels, offset=fused.gate.offset)
        plain, near = copy.deepcopy(fused).double(), []
        plain.fused = False
        for norm in plain.gate.bn1, plain.gate.bn2:
            norm.register_forward_hook(lambda *args: near.append(args[2]))
        for seed in count():
            randomise(fused, seed=seed)
            plain.load_state_dict(fused.state_dict())
            plain.zero_grad()
            x = (torch.randn(n, inputs, 3, 2) * 2 + 1).to(dtype)
            trunk, gradient = torch.randn(2, n, outputs, 2, 2).to(dtype)
            data = [t.to(memory_format=layout) for t in (trunk, x, gradient)]
            expected = _results(plain, data, activation, torch.double, 'cpu')
            # Nearer to a kink, a unit may be on its other side.
            if min(y.abs().min() for y in near[-2:]) > 3e-6:
                break
        with torch.autocast(DEVICE, torch.bfloat16, dtype != torch.float):
            fused = fused.to(DEVICE)
            results = _results(fused, data, activation, dtype, DEVICE)
        for name, value in expected.items():
            error = (results[name].cpu().double() - value).abs().max()
            bound = TOLERANCE[torch.float if 'running' in name else dtype]
            assert error <= bound * value.abs().max(), (name, float(error))

    return check


def _results(module, data, activation, dtype, device):
    trunk, x, gradient = (t.to(device, dtype) for t in data)
    x.requires_grad_()
    trunk.requires_grad_()
    assert not module.fused or fused_gate.applies(module, trunk, x)
    y = module(trunk, x, activation)
    y.backward(gradient)
    values = dict(y=y.detach(), x=x.grad, trunk=trunk.grad)
    assert {value.dtype for value in values.values()} == {dtype}
    gradients = {n: p.grad for n, p in module.named_parameters()}
    return {**values, **gradients, **dict(module.named_buffers())}


@needs_kernels
@layouts
@pytest.mark.parametrize('dtype', TOLERANCE)
def test_precisions(dtype, layout, agree):
    agree(ShiftBalance, (37, 18, 5), 11, dtype, layout, nn.ReLU())
    sizes = 40, 5, 40
    agree(SqueezeExcite, sizes, 11, dtype, layout, nn.ReLU6(), gate_offset=4)


@needs_kernels
@pytest.mark.parametrize(
    ('gate', 'n'), [('tanh', 256), ('sigmoid', 130), ('relu', 37), ('none', 8)]
)
def test_rows_and_gating_functions(gate, n, agree):
    agree(ShiftBalance, (5, 18, 37), n, gate=gate)


@needs_kernels
def test_every_layer_of_the_networks(agree, monkeypatch):
    if INTERPRETED:  # which then takes fewer steps, and every eighth layer
        monkeypatch.setattr(gate_kernels, 'BLOCK', dict(COLS=256, K=256))
        tiles = dict.fromkeys([False, True], (64, 2048))
        monkeypatch.setattr(pixel_kernels, 'TILES', tiles)
    layers = set()
    for network in 'MobileNetV2', 'MnasNet', 'ShuffleNetV2':
        cfg = dict(type=f'sb_mm.Attention{network}')
        cfg['attention'] = dict(type='sb_mm.ShiftBalance')
        with torch.device('meta'):
            parts = MODELS.build(cfg).modules()
        gates = [p.gate for p in parts if isinstance(p, ChannelAttention)]
        layers |= {(*g.fc1.weight.shape[::-1], len(g.bn2.bias)) for g in gates}
    chosen = sorted(layers)[:: 8 if INTERPRETED else 1]
    for channels, n in zip(chosen, cycle([8, 13, 60])):
        agree(ShiftBalance, channels, n)


# ---- the pixels, and every kernel compiled ----------------------------


def _integers(shape, layout, dtype, offset):
    """Return small integers, whose address is ``offset`` values further."""
    n, channels, *size = shape
    numbers = math.prod(shape) + offset
    values = torch.randint(-9, 10, (numbers,), dtype=dtype, device=DEVICE)
    values = values[offset:]
    if layout is torch.channels_last:
        return values.view(n, *size, channels).movedim(-1, 1)
    return values.view(shape)


@needs_kernels
@layouts
@pytest.mark.parametrize(
    ('activation', 'dtype'),
    [(None, torch.float32), (nn.ReLU, torch.bfloat16),
     (nn.ReLU6, torch.float32), (nn.ReLU6, torch.half)],
)  # fmt: skip
@pytest.mark.parametrize(
    ('channels', 'size', 'offset', 'parts'),
    [(40, (1, 1), 0, 16), (11, (3, 5), 0, 16), (8, (4, 4), 1, 16),
     (40, (19, 19), 0, 4), (9, (23, 24), 0, 1)],
)  # fmt: skip
def test_pixels(
    channels, size, offset, parts, activation, dtype, layout, monkeypatch
):
    """Integers, of which many are 0 and 6, have to be equal."""
    monkeypatch.setattr(pixel_kernels, 'MAX_PARTS', parts)
    bounds = fused_gate.BOUNDS[activation or type(None)]
    activate = activation() if activation else nn.Identity()
    for combine, function in (torch.add, 'add'), (torch.mul, 'mul'):
        trunk = _integers((2, channels, *size), layout, dtype, offset)
        trunk.requires_grad_()
        gates = torch.randint(-2, 3, (2, channels, 1, 1), device=DEVICE)
        gates = gates.float().requires_grad_()
        y = activate(combine(trunk.float(), gates))
        dy = _integers(trunk.shape, layout, dtype, offset)
        y.backward(dy.float())
        numbers = gates.detach().flatten(1)
        out = pixel_kernels.forward(trunk.detach(), numbers, function, bounds)
        saved = out if function == 'add' else trunk.detach()
        numbers = None if function == 'add' else numbers
        dtrunk, sums = pixel_kernels.backward(
            dy, saved, numbers, function, bounds
        )
        assert sums.size(0) <= parts
        assert torch.equal(out, y.to(dtype))
        assert out.stride() == trunk.stride() == dtrunk.stride()
        assert torch.equal(dtrunk, trunk.grad)
        assert torch.equal(sums.sum(0), gates.grad.flatten(1))


@needs_kernels
def test_nan_stays():
    trunk = torch.full((2, 3, 4, 4), math.nan, device=DEVICE)
    gates = torch.zeros(2, 3, device=DEVICE)
    out = pixel_kernels.forward(trunk, gates, 'add', (0.0, 6.0))
    assert out.isnan().all()


INTEGERS = {
    *('n', 'inputs', 'hidden', 'outputs', 'parts'),
    *('channels', 'pixels', 'steps'),
}
NUMBERS = {'offset', 'factor', 'eps', 'momentum', 'low', 'high'}


@pytest.fixture
def compiled(tmp_path):
    """Compile for a device that need not be here, and without spilling."""

    def build(name, constants, capability, warps):
        kernel, _ = launch.KERNELS[name]
        types = dict.fromkeys(kernel.arg_names, '*fp32')
        types |= dict.fromkeys(INTEGERS & types.keys(), 'i32')
        types |= dict.fromkeys(NUMBERS & types.keys(), 'fp32')
        types |= dict.fromkeys(constants, 'constexpr')
        source = triton.compiler.ASTSource(kernel, types, constants)
        target = triton.backends.compiler.GPUTarget('cuda', capability, 32)
        options = dict(num_warps=warps, num_stages=2)
        found = triton.compile(source, target, options)
        path = tmp_path / 'kernel.cubin'
        path.write_bytes(found.asm['cubin'])
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.check_output([tool, '-res-usage', path], text=True)
        assert 'STACK:0 ' in usage
        return found

    return build


@needs_compiler
@pytest.mark.parametrize('n', [128, 256])
@pytest.mark.parametrize('capability', [80, 90])
def test_registers_hold_the_largest_batches(capability, n, compiled):
    for name, (_, plan) in launch.KERNELS.items():
        if not name.startswith('pixels'):
            _, block, warps = plan((), (), (n, 960, 960))
            constants = dict(zip(('ROWS', 'COLS', 'K'), block, strict=True))
            constants['FUNCTION'] = 'tanh'
            found = compiled(name, constants, capability, warps)
            # Of a consumer's card; the compiler checks none.
            assert found.metadata.shared <= 99 * 1024


@needs_compiler
@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('name', ['pixels_forward', 'pixels_backward'])
def test_pixels_are_read_in_vectors(name, last, compiled):
    size, columns = pixel_kernels.TILES[last]
    constants = dict(FUNCTION='mul', LAST=last, SIZE=size, COLS=columns)
    for vector in 1, 4:
        constants['VECTOR'] = vector
        found = compiled(name, constants, 90, pixel_kernels.WARPS)
        wide = 'ld.global.v4.b32' in found.asm['ptx']
        assert wide == (vector == 4)


# ---- where the plain form stays ----------------------------------------


@needs_kernels
@pytest.mark.parametrize(
    ('change', 'n', 'kwargs'),
    [
        (id, 7, {}),
        (id, 257, {}),
        (nn.Module.eval, 9, {}),
        (nn.Module.double, 9, {}),
        (nn.Module.half, 9, {}),
        (lambda m: m.gate.bn1.eval(), 9, {}),
        (lambda m: setattr(m.gate.bn1, 'momentum', None), 9, {}),
        (lambda m: m.gate.bn2.register_forward_hook(print), 9, {}),
        (nn.SyncBatchNorm.convert_sync_batchnorm, 9, {}),
        (id, 9, dict(dropout=0.5)),
        (id, 9, dict(gate_norm=False)),
        (id, 9, dict(gate='softmax')),
    ],
)
def test_what_is_not_fused(change, n, kwargs):
    module = ShiftBalance(6, 10, fused=True, **kwargs).to(DEVICE)
    x, usual = (torch.randn(n, 6, 2, 2, device=DEVICE) for n in (n, 9))
    assert kwargs or fused_gate.applies(module, usual, usual)
    change(module)
    assert not fused_gate.applies(module, x, x)


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
    with pytest.warns(UserWarning, match='need Triton'):
        assert not SqueezeExcite(4, 4).fused


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
def test_two_passes_before_one_backward_and_checkpointing(layer, batches):
    separate = [_gradients(layer, [_loss(layer, x)]) for x in batches]
    sums = [sum(parts) for parts in zip(*separate, strict=True)]
    together = _gradients(layer, [_loss(layer, x) for x in batches])
    torch.testing.assert_close(together, sums)
    losses = [
        checkpoint(_loss, layer, x, use_reentrant=False) for x in batches
    ]
    torch.testing.assert_close(_gradients(layer, losses), sums)


@pytest.mark.skipif(not INTERPRETED, reason='its processes share no GPU')
def test_ddp_averages_the_gradients_of_the_plain_form(
    layer, batches, in_two_processes
):
    def train(rank):
        parallel = DistributedDataParallel(layer)
        return _gradients(parallel, [_loss(parallel, batches[rank])])

    plain = copy.deepcopy(layer)
    plain.attention.fused = False
    separate = [_gradients(plain, [_loss(plain, x)]) for x in batches]
    means = [sum(parts) / 2 for parts in zip(*separate, strict=True)]
    for found in in_two_processes(train):
        torch.testing.assert_close(found, means, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_a_compiled_network_has_no_graph_break(layer, batches):
    plain = copy.deepcopy(layer)
    expected = _gradients(layer, [_loss(layer, batches[0])])
    compiled = torch.compile(plain, fullgraph=True, backend='aot_eager')
    gradients = _gradients(plain, [_loss(compiled, batches[0])])
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.state_dict(), layer.state_dict())


@needs_kernels
def test_a_second_derivative_is_refused(layer, batches):
    x = batches[0].detach().requires_grad_()
    (slope,) = torch.autograd.grad(_loss(layer, x), x, create_graph=True)
    with pytest.raises(RuntimeError, match='differentiate twice'):
        slope.sum().backward()
