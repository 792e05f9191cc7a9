"""Figures of what attention does, and what is said if they cannot be drawn."""

import argparse
import json
import os

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from torch import nn

from sb_mm.errors import UserInputError
from sb_mm.models.layers import AttentionConvModule
from sb_mm.visualization.attention import (
    attention_figure,
    layer_points,
    read_attention_stats,
    shift_figure,
)
from sb_mm.visualization.work_dir import load_trained

from .conftest import SHORT

SB = dict(type='sb_mm.ShiftBalance')
SE = dict(type='sb_mm.SqueezeExcite')
STATIC = {
    'backbone.layer1.0.conv.0': dict(trunk_std=1.0, output_std=1.0),
    'backbone.layer1.0.conv.1': dict(trunk_std=1.5, output_std=1.5),
    'backbone.layer1.1.conv.0': dict(trunk_std=9.0, output_std=9.0),
}
GATED = {
    'backbone.layer1.0.conv.0': dict(
        trunk_std=1.0, output_std=0.5, saturated=0.25, inactivated=0.125
    ),
    'backbone.layer1.0.conv.1': dict(trunk_std=1.0, output_std=1.0),
    'backbone.layer1.0': dict(
        trunk_std=2.0, output_std=None, saturated=0.5, inactivated=0.0
    ),
    'neck.extra_layers.0.conv.0': dict(trunk_std=3.0, output_std=3.0),
}
SHIFTED = {
    'layers.0.0.branch1.0': dict(
        trunk_std=1.0,
        output_std=1.2,
        saturated=0.1,
        lambda_mean=0.2,
        lambda_std=0.05,
    ),
    'layers.0.0.branch2.0': dict(
        trunk_std=1.0,
        output_std=1.1,
        saturated=0.2,
        lambda_mean=-0.1,
        lambda_std=0.02,
    ),
}


def record(layers, epoch=1):
    """An epoch's record as the hook writes it."""
    named = {k: dict(kind='X', **metrics) for k, metrics in layers.items()}
    return dict(epoch=epoch, layers=named)


def write_stats(work_dir, *records, log='20250101_000000'):
    folder = work_dir / log / 'vis_data'
    folder.mkdir(parents=True)
    text = ''.join(json.dumps(r) + '\n' for r in records)
    (folder / 'attention_stats.json').write_text(text)
    return work_dir


def lines_of(axes):
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
    }


def test_the_attention_figure_has_the_numbers_of_the_records():
    runs = [('a', record(STATIC)), ('b', record(GATED, 7))]
    grid = np.array(attention_figure(runs).axes).reshape(-1, 2)
    std, inactivated, saturated = grid
    assert [a.get_title() for a in std] == ['a, epoch 1', 'b, epoch 7']
    expected = {
        'layer output': ([0, 1, 2], [1.0, 1.5, 9.0]),
        'trunk T(x)': ([0, 1, 2], [1.0, 1.5, 9.0]),
    }
    assert lines_of(std[0]) == expected
    gated = lines_of(std[1])
    assert gated['trunk T(x)'] == ([0, 1, 2, 3], [1.0, 1.0, 2.0, 3.0])
    # What was not finite is a gap, and the other layers keep their places.
    np.testing.assert_equal(gated['layer output'][1], [0.5, 1.0, np.nan, 3.0])
    texts = [[t.get_text() for t in a.texts] for a in (*std, *inactivated)]
    assert texts == [[], ['gaps: not finite'], ['none'], []]
    assert [*lines_of(inactivated[1]).values()] == [([0, 2], [0.125, 0.0])]
    assert [*lines_of(saturated[1]).values()] == [([0, 2], [0.25, 0.5])]
    # Some diverge: a thousand times the others' must not hide these.
    assert std[0].get_yscale() == 'log'
    assert std[0].get_ylim() == std[1].get_ylim()


def test_lambda_is_drawn_with_its_spread():
    # Below standard deviation and saturated; no row for SE's metric.
    _, _, axes = attention_figure([('c', record(SHIFTED))]).axes
    (bars,) = axes.containers
    means, _, (spread,) = bars.lines
    assert list(means.get_ydata()) == [0.2, -0.1]
    np.testing.assert_allclose(
        spread.get_segments(),
        [[[0, 0.15], [0, 0.25]], [[1, -0.12], [1, -0.08]]],
    )


def test_each_block_has_a_tick_at_its_first_layer():
    names = [
        'backbone.layer1.0.conv.0',
        'backbone.layer1.0.conv.1',
        'backbone.layer1.0.shortcut',
        'backbone.layer1.0',
        'backbone.layer1.1.conv.0',
        'neck.extra_layers.0.conv.0',
        'layers.0.0.branch1.0',
        'layers.0.0.branch2.1',
    ]
    layers = {n: dict(trunk_std=1.0, output_std=1.0) for n in names}
    axes = attention_figure([('a', record(layers))]).axes[-1]
    texts = [label.get_text() for label in axes.get_xticklabels()]
    assert dict(zip(axes.get_xticks(), texts, strict=True)) == {
        0: 'layer1.0',
        4: 'layer1.1',
        5: 'neck.extra_layers.0',
        6: 'layers.0.0',
    }


def test_the_newest_epochs_of_all_starts_are_read(tmp_path):
    write_stats(tmp_path, record(GATED, 1), record(GATED, 2), record(GATED, 5))
    write_stats(tmp_path, record(STATIC, 2), log='20250102_000000')
    assert read_attention_stats(tmp_path, 1) == record(GATED, 1)
    assert read_attention_stats(tmp_path) == record(STATIC, 2)
    with pytest.raises(UserInputError, match='epoch 5 is not.*1 to 2'):
        read_attention_stats(tmp_path, 5)


def test_the_tool_draws_runs_side_by_side(tool, tmp_path):
    runs = [
        write_stats(tmp_path / name, record(layers, 1), record(layers, 2))
        for name, layers in (('static', STATIC), ('cell/seed0', SHIFTED))
    ]
    code, error = tool('plot', 'attention', *runs)
    assert code == 0, error
    with Image.open(tmp_path / 'static/attention.png') as image:
        pixels = np.asarray(image.convert('RGB'))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    more = ['--out', tmp_path / 'new/two.svg', '--epoch', 1]
    code, error = tool('plot', 'attention', *runs, *more, '--labels', 'x', 'y')
    assert code == 0, error
    svg = (tmp_path / 'new/two.svg').read_text()
    assert '<!-- x, epoch 1 -->' in svg
    tool('plot', 'attention', *runs, *more)
    svg = (tmp_path / 'new/two.svg').read_text()
    assert '<!-- cell/seed0, epoch 1 -->' in svg


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        (['nowhere'], 'The work directory nowhere does not exist'),
        (['.'], 'default_hooks.attention.type=sb_mm.AttentionStatsHook'),
        (['run', '--epoch', '9'], '--epoch 9 is not in'),
        (['run', '--labels', 'a', 'b'], '--labels must be as many'),
        (['run', '--out', 'x.xyz'], '--out must end in one of'),
        (['run', '--out', 'file/x.png'], 'cannot be written'),
    ],
)
def test_what_keeps_attention_from_being_drawn_is_named(
    more, words, tool, tmp_path, monkeypatch
):
    write_stats(tmp_path / 'run', record(STATIC))
    (tmp_path / 'file').touch()
    monkeypatch.chdir(tmp_path)
    code, error = tool('plot', 'attention', *more)
    assert code == 2
    assert words in error
    assert error.count('\n') == 1


class Net(BaseModel):
    """Convolutions on inputs that need no preparation."""

    def __init__(self, *attentions):
        super().__init__(BaseDataPreprocessor())
        torch.manual_seed(0)
        norm = dict(type='BN')
        self.layers = nn.Sequential(
            *(
                AttentionConvModule(3, 3, 1, attention=kind, norm_cfg=norm)
                for kind in attentions
            )
        )
        for name, parameter in self.named_parameters():
            if 'bn2' in name or 'lambda_' in name:
                parameter.data.normal_()

    def forward(self, inputs, mode='tensor'):
        return self.layers(inputs)


def batch(count=4, size=8):
    generator = torch.Generator().manual_seed(0)
    return dict(inputs=torch.randn(count, 3, size, size, generator=generator))


def test_points_are_a_layers_trunk_and_its_output():
    net = Net(SE, SB, None).eval()
    layer, *points = layer_points(net, batch())
    module = net.layers[1]
    x = net.layers[0](batch()['inputs'])
    trunk = module.bn(module.conv(x))
    shift = module.attention.lambda_ * module.attention.gate(x).tanh()
    # The last attention, not the last layer; as pairs, in any order.
    assert layer == 'layers.1'
    expected = torch.stack([trunk, trunk + shift[..., None, None]])
    torch.testing.assert_close(
        sorted(torch.stack(points).T.tolist()),
        sorted(expected.flatten(1).T.tolist()),
    )
    assert layer_points(net, batch(), 'layers.0')[0] == 'layers.0'


def test_points_are_at_most_20000_and_always_the_same():
    net = Net(SE).eval()
    _, trunk, output = layer_points(net, batch(8, 32))
    assert trunk.shape == output.shape == (20_000,)
    assert layer_points(net, batch(8, 32))[1].equal(trunk)
    # From all images and all channels, none twice.
    assert len(trunk.unique()) > 19_500
    assert len((output / trunk).round(decimals=3).unique()) >= 8


def test_a_layer_is_not_found_by_a_wrong_name():
    net = Net(*[SE] * 5)
    with pytest.raises(UserInputError, match=r'layers\.9.*layers\.0.* more'):
        layer_points(net, batch(), 'layers.9')
    with pytest.raises(UserInputError, match='no layer with attention'):
        layer_points(Net(None), batch())


def test_the_shift_figure_has_the_points_but_not_the_outliers():
    layer, trunk, output = layer_points(Net(SB).eval(), batch())
    output[0] = 1e6
    (axes,) = shift_figure([('a run', (layer, trunk, output))]).axes
    (scatter,) = (c for c in axes.collections if type(c) is PathCollection)
    offsets = np.asarray(scatter.get_offsets())
    np.testing.assert_equal(offsets.T, np.stack([trunk, output]))
    assert axes.get_ylim()[1] < 100
    nothing = torch.full((5,), torch.nan)  # of a network that diverged
    shift_figure([('a', (layer, nothing, nothing))]).canvas.draw()


@pytest.fixture
def finished(config, devkit, tmp_path):
    """A work directory as a run of ssd_sb_custom.py leaves it, untrained."""
    (devkit / 'ImageSets/Main/val.txt').write_text('d')
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    options = dict(s.split('=', 1) for s in SHORT if s.startswith('model'))
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(
        {k: eval(v) for k, v in options.items()}  # numbers and tuples
    )
    cfg.val_dataloader.batch_size = 1
    cfg.val_dataloader.prefetch_factor = 2
    (work_dir / 'older.py').write_text('model = None')
    os.utime(work_dir / 'older.py', (0, 0))
    cfg.dump(work_dir / 'mine.py')
    init_default_scope('mmdet')
    torch.manual_seed(3)
    model = MODELS.build(cfg.model)
    # More than tensors, which only who trusts the file will load.
    content = dict(state_dict=model.state_dict())
    torch.save(content, work_dir / 'epoch_1.pth')
    evil = dict(content, meta=dict(options=argparse.Namespace()))
    torch.save(evil, tmp_path / 'evil.pth')
    # As it was where the run was trained.
    (work_dir / 'last_checkpoint').write_text('elsewhere/run/epoch_1.pth')
    return work_dir


def test_a_trained_network_is_found_and_drawn(finished, devkit, tool):
    """Building the network is slow: one, several looks."""
    model, loaded = load_trained(finished)
    saved = torch.load(finished / 'epoch_1.pth')['state_dict']
    for name, value in model.state_dict().items():
        assert value.equal(saved[name]), name
    assert not model.training
    # The validation image; d.jpg is not among those of the training.
    (sample,) = loaded['data_samples']
    assert sample.img_path.endswith('d.jpg')
    assert loaded['inputs'][0].shape == (3, 300, 300)

    evil = str(finished.parent / 'evil.pth')
    with pytest.raises(UserInputError, match='--trust-checkpoint'):
        load_trained(finished, evil)
    moved = devkit.rename(devkit.with_name('moved'))
    with pytest.raises(UserInputError, match='not found'):
        load_trained(finished)
    load_trained(finished, evil, data_root=str(moved), trust=True)

    code, error = tool('plot', 'shift', finished, '--data-root', moved)
    assert code == 0, error
    with Image.open(finished / 'shift.png') as image:
        pixels = np.asarray(image.convert('RGB'))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def fails(tool, *argv):
    """Run `tools/plot.py shift` and return its one sentence."""
    code, error = tool('plot', 'shift', *argv)
    assert code == 2
    assert error.count('error: ') == 1
    return error.splitlines()[-1]


def test_what_is_missing_of_a_run_is_named(finished, tool, tmp_path):
    assert f'{tmp_path / "no"} does not exist' in fails(tool, tmp_path / 'no')
    (tmp_path / 'x').mkdir()
    assert 'holds no config' in fails(tool, tmp_path / 'x')
    (tmp_path / 'x/mine.py').write_text("model = dict(type='SSD')")
    assert 'has no val_dataloader' in fails(tool, tmp_path / 'x')
    error = fails(tool, finished, finished, '--checkpoint', 'x.pth')
    assert '--checkpoint is for a single work directory' in error
    error = fails(tool, finished, '--layer', 'neck')
    assert '--layer neck is no layer with attention' in error
    error = fails(tool, finished, '--checkpoint', 'mine.pth')
    assert 'mine.pth' in error
    (finished / 'epoch_1.pth').unlink()
    assert 'elsewhere/run/epoch_1.pth' in fails(tool, finished)
    (finished / 'last_checkpoint').unlink()
    assert 'holds no checkpoint' in fails(tool, finished)
    assert not (finished / 'shift.png').exists()
