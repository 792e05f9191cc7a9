"""The benchmarks run, and count what a training step asks of a device."""

import json

import pytest
from torch import nn

for package in ('mmdet', 'mmpretrain'):
    pytest.importorskip(package)

from benchmarks import run  # noqa: E402
from benchmarks.training import (  # noqa: E402
    DYCONV,
    KINDS,
    SB,
    SE,
    STATIC,
    build,
    count_calls,
)

# The others take longer, or need a compiler or the packages of the export.
FAST = ('augmentation', 'cifar_step')


def test_a_tiny_run_adds_a_row_a_comparison(tiny_devkit, tmp_path):
    names = ['a', 'c', 'd']
    root = tiny_devkit('VOC2007', lists=dict(trainval=names), classes=['cat'])
    out = tmp_path / 'new/a.jsonl'
    argv = ('--tiny', '--data-root', str(root), '--out', str(out), '--only')
    run.main([*argv, 'cifar_input'])
    run.main([*argv, *FAST])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row['ours'], row['other']) for row in rows] == [
        ('sb_mm', 'mmpretrain'),
        *[('sb_mm', 'mmdet')] * 2,
        *((SB, STATIC), (SE, STATIC), (SB, SE), (SB, DYCONV)),
        *((SB, STATIC), (SB, SE)),  # memory
    ]
    for row in rows:
        assert row['rounds'] == 1
        ratio = row['ours_median'] / row['other_median']
        assert row['ratio'] == pytest.approx([ratio] * 3, rel=2e-3)
        assert row['machine']
        assert row['command'].startswith('python benchmarks/run.py --tiny')


def test_device_calls_of_a_training_step():
    pytest.importorskip('triton')
    # Convolution, ReLU, their gradients, the sum and its gradient.
    layers = _Backbone(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU())
    assert count_calls(layers) == 6
    calls = {k: count_calls(build(k, 0.35, True)) for k in KINDS}
    ratios = {kind: count / calls[STATIC] for kind, count in calls.items()}
    assert ratios[SB] <= 3.9
    assert ratios[SE] <= 3.9
    # Seven kernels a layer instead of 21 calls.
    assert ratios['SB fused'] <= 2.4
    assert ratios['SE fused'] <= 2.4


class _Backbone(nn.Sequential):
    def forward(self, x):
        return (super().forward(x),)
