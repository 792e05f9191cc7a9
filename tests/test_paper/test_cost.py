"""Counts of parameters and multiply-adds, against independent sums."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sb_mm.engine.build import build_model
from sb_mm.models import DynamicConv2d
from sb_mm.models.layers import ChannelAttention
from sb_mm.paper import commands
from sb_mm.paper.cells import find_cell, load_cells
from sb_mm.paper.cost import (
    Comparison,
    Shape,
    check_cell,
    layer_overheads,
    network_cost,
)

CELLS = load_cells()


def _by_hooks(model, size):
    """Sum up the multiply-adds from the shapes that each layer sees."""
    sums = dict(convolution=0, linear=0, mixing=0)

    def hook(module, inputs, output):
        if isinstance(module, nn.Linear):
            sums['linear'] += output.numel() * module.in_features
            return
        kh, kw = module.kernel_size
        per_output = module.in_channels // module.groups * kh * kw
        sums['convolution'] += output.numel() * per_output
        if isinstance(module, DynamicConv2d):
            kernel = module.out_channels * per_output
            sums['mixing'] += module.num_kernels * kernel

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, DynamicConv2d, nn.Linear)):
            module.register_forward_hook(hook)
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return sums


@pytest.mark.parametrize(
    'cell_id',
    [
        't1-sb-x0.35',
        't1-se-x0.35',
        't1-dyconv-x0.35',
        't3-shufflenet_v2-x0.5-sb',
        't3-mnasnet-x0.5-se',
        't6-x0.35-dyconv',
        't4-ssd-mobilenetv2-x0.35-sb',
    ],
)
def test_the_counter_agrees_with_hooks_on_every_layer(cell_id):
    cell = find_cell(cell_id)
    size = cell.spec.image_size
    counted = network_cost(cell.resolve(), size)
    found = {
        k: getattr(counted, k) for k in ('convolution', 'linear', 'mixing')
    }
    assert found == _by_hooks(build_model(cell.resolve()).eval(), size)
    assert counted.multiply_adds == sum(found.values())


@pytest.mark.parametrize('cell', CELLS, ids=lambda c: c.id)
def test_every_printed_count_follows_from_the_network(cell):
    checked = check_cell(cell)
    assert checked.matches, checked
    if 'params_m' in cell.printed:
        millions = round(checked.cost.parameters / 1e6, 3)
        assert millions == cell.printed['params_m']


def test_the_paper_prints_55_parameter_counts():
    assert sum('params_m' in c.printed for c in CELLS) == 55


# 59.29 and 60.28 M at x0.35 ... 300.77 and 308.73 M at x1.0: convolutions and
# Linear layers, counted by hand.
@pytest.mark.parametrize(
    ('width', 'static', 'sb'),
    [
        (0.35, 59_285_808, 60_284_656),
        (0.5, 97_131_840, 99_134_912),
        (0.75, 209_069_792, 213_583_584),
        (1.0, 300_774_272, 308_732_352),
    ],
)
def test_multiply_adds_of_table_1(width, static, sb):
    found = [
        check_cell(find_cell(f't1-{name}-x{width}')).cost.multiply_adds
        for name in ('static', 'sb')
    ]
    assert found == [static, sb]


def test_a_number_that_is_off_by_one_digit_does_not_match():
    assert Comparison(1.677, 1.677128, 1.677128, 5e-4).matches
    assert not Comparison(1.678, 1.677128, 1.677128, 5e-4).matches
    assert not Comparison(1.676, 1.677128, 1.677128, 5e-4).matches
    assert Comparison(None, 1.0, 1.0, 0.0).matches
    assert not Comparison(2.0, 1.0, None, 0.0).is_checked


def test_check_prints_every_count_and_tells_a_mismatch(monkeypatch, capsys):
    assert commands.check_cells([1, 10]) == 0
    text = capsys.readouterr().out
    assert '2,447,042' in text
    assert '20 printed, 20 as counted here' in text
    # The DyConv paper's multiply-adds are those of another network.
    (line,) = [x for x in text.splitlines() if 't1-dyconv-x0.35' in x]
    assert line.split()[-2:] == ['another', 'network']
    assert '16 printed, 12 as counted here, 4 of another network' in text
    wrong = dict(find_cell('t10-x0.35-hidden-x1').printed, params_m=1.442)
    cell = find_cell('t10-x0.35-hidden-x1')
    monkeypatch.setattr(
        commands, 'select_cells', lambda *_: [replace(cell, printed=wrong)]
    )
    assert commands.check_cells() == 1
    assert 'mismatch: t10-x0.35-hidden-x1' in capsys.readouterr().out


def test_the_overhead_is_that_of_equations_10_to_17():
    # Cin = 4, Chid = 3, Cout = 5, 10x10 pixels in, 5x5 out:
    # multiplies 4 + 4*3 + 3*5 + 5, adds 4*100 + 4*3 + 3*5 + 5*25.
    found = Shape(4, 3, 5, 100, 25)
    assert (found.multiplies, found.adds) == (36, 552)


@pytest.mark.parametrize(
    'cell_id', ['t6-x0.35-sb', 't4-ssd-mobilenetv2-x0.35-sb']
)
def test_the_overhead_of_a_network_is_that_of_its_layers(cell_id):
    cell = find_cell(cell_id)
    layers = layer_overheads(cell)
    model = build_model(cell.resolve()).eval()
    gates = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, ChannelAttention)
    }
    assert list(layers) == list(gates)
    linear = sum(
        g.gate.fc1.weight.numel() + g.gate.fc2.weight.numel()
        for g in gates.values()
    )
    channels = sum(
        g.gate.fc1.in_features + g.gate.fc2.out_features
        for g in gates.values()
    )
    total = sum(o.multiplies for o in layers.values())
    assert total == linear + channels
    # The first: 1x1 at the stem's resolution, as many pixels in as out.
    first = next(iter(layers.values()))
    gate = next(iter(gates.values())).gate
    cin, cout = gate.fc1.in_features, gate.fc2.out_features
    pixels = 32 * 32 if cell.dataset == 'cifar10' else 150 * 150
    weights = gate.fc1.weight.numel() + gate.fc2.weight.numel()
    assert first.adds == (cin + cout) * pixels + weights
