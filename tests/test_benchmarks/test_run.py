"""The benchmarks run, and count what a training step asks of a device."""

import json
import time

import pytest
from torch import nn

for package in ('mmdet', 'mmpretrain', 'timm'):
    pytest.importorskip(package)

from benchmarks import run  # noqa: E402
from benchmarks.networks import KINDS, SB, SE, STATIC, build  # noqa: E402
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
        *((SB, STATIC), (SE, STATIC), (SB, SE), (SB, 'DyConv')),
        *((SB, other) for other in (STATIC, SE)),
        *[('sb_mm', 'grouped convolution')] * 4,  # time and memory
    ]
    for row in rows:
        assert row['rounds'] == 1
        ratio = row['ours_median'] / row['other_median']
        assert row['ratio'] == pytest.approx([ratio] * 3, rel=2e-3)
        assert row['machine']
        assert row['command'].startswith('python benchmarks/run.py --tiny')


def test_a_case_that_takes_too_long_or_breaks_is_left_out(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(run, '_measure', _odd_case)
    argv = ('--limit', '2', '--out', str(tmp_path / 'a.json'), '--only')
    run.main([*argv, 'device_calls'])
    run.main([*argv, 'cifar_step'])
    printed = capsys.readouterr().out
    assert 'device_calls: not run: longer than 2 s' in printed
    assert 'cifar_step: not run: exit code 1' in printed
    (row,) = json.loads((tmp_path / 'a.json').read_text())
    assert row['what'] == 'first'


def _odd_case(case, settings):
    names = dict.fromkeys(('ours', 'other', 'unit'), 'x')
    values = dict(ours_median=1, other_median=1, ratio=[1, 1, 1], target=None)
    yield dict(names, what='first', device='cpu', **values)
    if case.__name__ == 'device_calls':
        time.sleep(60)
    raise ValueError


def test_device_calls_of_a_training_step():
    pytest.importorskip('triton')
    # Convolution, ReLU, their gradients, the sum and its gradient.
    layers = _Backbone(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU())
    assert count_calls(layers) == 6
    calls = {k: count_calls(build(k, 0.35, True)) for k in KINDS}
    ratios = {kind: count / calls[STATIC] for kind, count in calls.items()}
    assert ratios[SB] <= 4.5
    assert ratios[SE] <= 4.3
    # Five kernels a gate instead of 26 calls.
    assert ratios['SB fused'] <= 2.4
    assert ratios['SE fused'] <= 2.4


class _Backbone(nn.Sequential):
    def forward(self, x):
        return (super().forward(x),)
