"""The benchmarks run, and count what a training step asks of a device."""

import json

import pytest
from torch import nn

for package in ('mmdet', 'mmpretrain', 'timm'):
    pytest.importorskip(package)

from benchmarks import run  # noqa: E402
from benchmarks.networks import SB, SE, STATIC, build  # noqa: E402
from benchmarks.training import count_calls  # noqa: E402

# The others take longer, or need a compiler or the packages of the export.
FAST = (
    'augmentation',
    'cifar_input',
    'cifar_step',
    'training_memory',
    'dynamic_conv',
)


def test_a_tiny_run_writes_a_row_a_comparison(tiny_devkit, tmp_path):
    names = ['a', 'c', 'd']
    root = tiny_devkit('VOC2007', lists=dict(trainval=names), classes=['cat'])
    out = tmp_path / 'new/a.json'
    run.write([dict(what='x', ours='a', other='b', device='cuda')], out)
    argv = ('--tiny', '--data-root', str(root), '--out', str(out))
    for _ in range(2):  # the second run's rows replace the first one's
        run.main([*argv, '--only', 'cifar_input'])
    run.main([*argv, '--only', *FAST])
    other, *rows = json.loads(out.read_text())
    assert other['what'] == 'x'
    pairs = [(row['ours'], row['other']) for row in rows]
    assert pairs == [
        ('sb_mm', 'mmpretrain'),  # where it stood
        ('sb_mm', 'mmdet'),
        *(('sb_mm', o) for o in ('grouped convolution', 'timm CondConv2d')),
        *(('sb_mm', o) for o in ('grouped convolution', 'timm CondConv2d')),
        *((SB, other) for other in (STATIC, SE, 'DyConv')),
        *((SB, other) for other in (STATIC, SE)),
    ]
    for row in rows:
        assert row['rounds'] == 1
        ratio = row['ours_median'] / row['other_median']
        assert row['ratio'] == pytest.approx([ratio] * 3, rel=2e-3)
        assert row['machine']
        assert row['command'].startswith('python benchmarks/run.py --tiny')


def test_device_calls_of_a_training_step():
    # Convolution, ReLU, their gradients, the sum and its gradient.
    layers = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU())
    assert count_calls(layers) == 6
    calls = {k: count_calls(build(k, 0.35, True)) for k in (STATIC, SE, SB)}
    assert calls[SB] / calls[STATIC] <= 4.5
    assert calls[SE] / calls[STATIC] <= 4.3
