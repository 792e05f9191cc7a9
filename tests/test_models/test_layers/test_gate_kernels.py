"""The kernels of the fused gate, called and compiled by themselves.

``test_fused_gate.py`` runs these in Triton's interpreter as well.
"""

import math
import subprocess

import pytest
import torch
from torch import nn

triton = pytest.importorskip('triton')
fused_gate = pytest.importorskip('sb_mm.models.layers.fused_gate')
launch = pytest.importorskip('sb_mm.models.layers.launch')
pixel_kernels = pytest.importorskip('sb_mm.models.layers.pixel_kernels')

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
pytestmark = pytest.mark.gpu
needs_kernels = pytest.mark.skipif(
    DEVICE == 'cpu' and not INTERPRETED, reason='run in the interpreter'
)
needs_compiler = pytest.mark.skipif(INTERPRETED, reason='is interpreted')
LAYOUTS = torch.contiguous_format, torch.channels_last


def _integers(shape, layout, dtype, offset):
    """Return small integers, whose address is ``offset`` values further."""
    n, channels, *size = shape
    last = layout is torch.channels_last
    values = torch.randint(-9, 10, (math.prod(shape) + offset,))[offset:]
    values = values.view(n, *size, channels) if last else values.view(shape)
    values = values.movedim(-1, 1) if last else values
    storage = torch.zeros(math.prod(shape) + offset, dtype=dtype)
    moved = storage.to(DEVICE)[offset:].as_strided(shape, values.stride())
    return moved.copy_(values).requires_grad_()


@needs_kernels
@pytest.mark.parametrize('layout', LAYOUTS)
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
    for combine, function in fused_gate.COMBINATIONS.items():
        trunk = _integers((2, channels, *size), layout, dtype, offset)
        gates = torch.randint(-2, 3, (2, channels, 1, 1), device=DEVICE)
        gates = gates.float().requires_grad_()
        y = activate(combine(trunk.float(), gates))
        dy = _integers(trunk.shape, layout, dtype, offset).detach()
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
GATE_KERNELS = (
    'hidden_forward',
    'output_forward',
    'output_backward',
    'hidden_backward',
    'input_backward',
)


def _compiled(kernel, constants, capability, warps):
    """Compile for a device that need not be here."""
    target = triton.backends.compiler.GPUTarget('cuda', capability, 32)
    types = dict.fromkeys(kernel.arg_names, '*fp32')
    types |= dict.fromkeys(INTEGERS & types.keys(), 'i32')
    types |= dict.fromkeys(NUMBERS & types.keys(), 'fp32')
    types |= dict.fromkeys({'batches'} & types.keys(), '*i64')
    types |= dict.fromkeys(constants.keys() & types.keys(), 'constexpr')
    values = {k: v for k, v in constants.items() if k in types}
    source = triton.compiler.ASTSource(kernel, types, values)
    options = dict(num_warps=warps, num_stages=2)
    return triton.compile(source, target, options)


@needs_compiler
@pytest.mark.parametrize('n', [128, 256])
@pytest.mark.parametrize('capability', [80, 90])
def test_registers_hold_the_largest_batches(capability, n, tmp_path):
    for name in GATE_KERNELS:
        kernel, plan = launch.KERNELS[name]
        _, block, warps = plan((), (), (n, 960, 960))
        constants = dict(zip(('ROWS', 'COLS', 'K'), block, strict=True))
        constants['FUNCTION'] = 'tanh'
        compiled = _compiled(kernel, constants, capability, warps)
        assert 'STACK:0 ' in _usage(compiled, tmp_path)  # nothing is spilled
        # Of a consumer's card; the compiler checks none.
        assert compiled.metadata.shared <= 99 * 1024


@needs_compiler
@pytest.mark.parametrize('last', [False, True])
def test_pixels_are_read_in_vectors(last, tmp_path):
    size, columns = pixel_kernels.TILES[last]
    constants = dict(FUNCTION='mul', LAST=last, SIZE=size, COLS=columns)
    for name in 'pixels_forward', 'pixels_backward':
        kernel, warps = getattr(pixel_kernels, name), pixel_kernels.WARPS
        for vector in 1, 4:
            constants['VECTOR'] = vector
            compiled = _compiled(kernel, constants, 90, warps)
            assert 'STACK:0 ' in _usage(compiled, tmp_path)
            wide = 'ld.global.v4.b32' in compiled.asm['ptx']
            assert wide == (vector == 4)


def _usage(compiled, folder):
    """Return what ``cuobjdump`` says of registers and memory."""
    path = folder / 'kernel.cubin'
    path.write_bytes(compiled.asm['cubin'])
    command = triton.knobs.nvidia.cuobjdump.path, '-res-usage', str(path)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(done.stdout)
    return done.stdout
