"""Figures of what attention does, and what is said if they cannot be drawn."""

import argparse
import json
import os

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_rgba
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from torch import nn

from sb_mm.engine import plots
from sb_mm.engine.config import load_config
from sb_mm.engine.plots import (
    attention_figure,
    layer_points,
    output_bounds,
    plot_attention,
    plot_shift,
    read_attention_stats,
    shift_figure,
)
from sb_mm.engine.trained_run import load_trained
from sb_mm.errors import UserInputError
from sb_mm.models.layers import AttentionConvModule, ShiftBalance

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
    """An epoch's record as the hook writes it, with the kind of attention."""
    kinds = dict(inactivated='SqueezeExcite', lambda_mean='ShiftBalance')
    named = {}
    for name, metrics in layers.items():
        found = [kind for metric, kind in kinds.items() if metric in metrics]
        named[name] = dict(kind=(found or ['NoAttention'])[0], **metrics)
    return dict(epoch=epoch, layers=named)


def write_stats(work_dir, *records, log='20250101_000000'):
    folder = work_dir / log / 'vis_data'
    folder.mkdir(parents=True)
    text = ''.join(json.dumps(r) + '\n' for r in records)
    (folder / 'attention_stats.json').write_text(text)
    return work_dir


def drawn(axes):
    """Data of the lines by colour, without the line at zero."""
    shown = axes.lines[:-1] if axes.get_yscale() == 'linear' else axes.lines
    lines = {to_rgba(line.get_color()): line for line in shown}
    return {
        colour: (list(line.get_xdata()), list(line.get_ydata()))
        for colour, line in lines.items()
    }


def grid_of(figure, columns):
    return np.array(figure.axes).reshape(-1, columns)


def test_the_attention_figure_has_the_numbers_of_the_records():
    runs = [('a', record(STATIC)), ('b', record(GATED, 7))]
    std, inactivated, saturated = grid_of(attention_figure(runs), 2)
    assert [a.get_title() for a in std] == ['a, epoch 1', 'b, epoch 7']
    black, first, second = map(to_rgba, ('black', 'C0', 'C1'))
    assert drawn(std[0])[first] == ([0, 1, 2], [1.0, 1.5, 9.0])
    assert drawn(std[0])[black] == ([0, 1, 2], [1.0, 1.5, 9.0])
    assert drawn(std[1])[black] == ([0, 1, 2, 3], [1.0, 1.0, 2.0, 3.0])
    # What was not finite is a gap, and the other layers keep their places.
    expected = [0.5, 1.0, np.nan, 3.0]
    np.testing.assert_equal(drawn(std[1])[second][1], expected)
    assert drawn(inactivated[1]) == {second: ([0, 2], [0.125, 0.0])}
    assert drawn(saturated[1]) == {second: ([0, 2], [0.25, 0.5])}
    for row, words in (
        (std, 'standard deviation'),
        (inactivated, 'inactivated'),
        (saturated, 'saturated'),
    ):
        assert words in row[0].get_ylabel()
    trunk, output = std[1].lines[1], std[1].lines[0]
    assert trunk.get_linestyle() == '--'
    assert output.get_linestyle() == '-'


def test_runs_have_one_scale_that_shows_all_of_them():
    runs = [('b', record(GATED)), ('a', record(STATIC))]
    std = grid_of(attention_figure(runs), 2)[0]
    assert std[0].get_ylim() == std[1].get_ylim()
    low, high = std[0].get_ylim()
    # Some diverge: a thousand times the others' must not hide these.
    assert std[0].get_yscale() == std[1].get_yscale() == 'log'
    assert 0 < low < 1
    assert high > 9.0


def test_outliers_do_not_hide_the_points():
    values = torch.cat((torch.linspace(-1, 1, 1001), torch.tensor([1e6])))
    low, high = plots._central(values)
    assert low == pytest.approx(-0.98, abs=0.01)
    assert high == pytest.approx(0.98, abs=0.01)
    assert plots._central(torch.full((5,), torch.nan)) is None
    assert plots._central(torch.ones(5)) is None


def test_a_run_without_a_metric_says_so_in_its_panel():
    runs = [('a', record(STATIC)), ('b', record(GATED))]
    inactivated = grid_of(attention_figure(runs), 2)[1]
    assert [t.get_text() for t in inactivated[0].texts] == ['none']
    assert drawn(inactivated[0]) == {}
    assert not inactivated[1].texts


def test_a_metric_that_no_run_has_gets_no_row():
    assert len(attention_figure([('a', record(STATIC))]).axes) == 1
    # Standard deviation, saturated, lambda.
    assert len(attention_figure([('c', record(SHIFTED))]).axes) == 3


def test_lambda_is_drawn_with_its_spread():
    axes = attention_figure([('c', record(SHIFTED))]).axes[2]
    assert 'lambda' in axes.get_ylabel()
    (bars,) = axes.containers
    means, _, (spread,) = bars.lines
    assert list(means.get_ydata()) == [0.2, -0.1]
    np.testing.assert_allclose(
        spread.get_segments(),
        [[[0, 0.15], [0, 0.25]], [[1, -0.12], [1, -0.08]]],
    )


def test_a_kind_of_attention_has_its_colour_whatever_its_place():
    one = grid_of(attention_figure([('a', record(SHIFTED))]), 1)
    other = grid_of(
        attention_figure([('b', record(STATIC)), ('a', record(SHIFTED))]), 2
    )
    colour = to_rgba('C2')
    assert colour in drawn(one[0, 0])
    assert colour in drawn(other[0, 1])


def test_gaps_are_called_not_finite():
    std = grid_of(attention_figure([('b', record(GATED))]), 1)[0, 0]
    assert [t.get_text() for t in std.texts] == ['gaps: not finite']
    std = grid_of(attention_figure([('b', record(STATIC))]), 1)[0, 0]
    assert not std.texts


def test_runs_are_called_by_their_cell_and_seed():
    dirs = ['work_dirs/t6-x0.35-sb/seed0', 'work_dirs/mine']
    assert plots._labels(dirs, None) == ['t6-x0.35-sb/seed0', 'mine']
    assert plots._labels(dirs, ['a', 'b']) == ['a', 'b']


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
    labels = {
        tick: label.get_text()
        for tick, label in zip(
            axes.get_xticks(), axes.get_xticklabels(), strict=True
        )
    }
    assert labels == {
        0: 'layer1.0',
        4: 'layer1.1',
        5: 'neck.extra_layers.0',
        6: 'layers.0.0',
    }


def test_the_newest_run_and_its_last_epoch_are_read(tmp_path):
    write_stats(tmp_path, record(GATED, 5))
    write_stats(
        tmp_path,
        record(STATIC, 1),
        record(GATED, 2),
        log='20250102_000000',
    )
    assert read_attention_stats(tmp_path) == record(GATED, 2)
    assert read_attention_stats(tmp_path, 1) == record(STATIC, 1)
    with pytest.raises(UserInputError, match='epoch 5 is not.*1 to 2'):
        read_attention_stats(tmp_path, 5)
    with pytest.raises(UserInputError, match='epoch 0 is not'):
        read_attention_stats(tmp_path, 0)


def test_epochs_before_a_resume_are_found(tmp_path):
    write_stats(tmp_path, record(GATED, 1), record(GATED, 2))
    write_stats(tmp_path, record(STATIC, 2), log='20250102_000000')
    assert read_attention_stats(tmp_path, 1) == record(GATED, 1)
    assert read_attention_stats(tmp_path) == record(STATIC, 2)


def test_the_tool_draws_runs_side_by_side(tool, tmp_path, monkeypatch):
    figures = []
    make = plots.attention_figure
    monkeypatch.setattr(
        plots,
        'attention_figure',
        lambda runs: figures.append(make(runs)) or figures[-1],
    )
    runs = [
        write_stats(tmp_path / name, record(layers, 1), record(layers, 2))
        for name, layers in (('static', STATIC), ('sb', SHIFTED))
    ]
    code, error = tool('plot', 'attention', *runs)
    assert code == 0, error
    more = ['--out', tmp_path / 'new/two.svg', '--epoch', 1]
    code, error = tool('plot', 'attention', *runs, *more, '--labels', 'x', 'y')
    assert code == 0, error
    titles = [[a.get_title() for a in f.axes[:2]] for f in figures]
    assert titles[0] == ['static, epoch 2', 'sb, epoch 2']
    assert titles[1] == ['x, epoch 1', 'y, epoch 1']
    with Image.open(tmp_path / 'static/attention.png') as image:
        pixels = np.asarray(image.convert('RGB'))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert '<svg' in (tmp_path / 'new/two.svg').read_text()


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        (['nowhere'], 'The work directory nowhere does not exist'),
        (['.'], "custom_hooks = [dict(type='sb_mm.AttentionStatsHook')]"),
        (['run', '--epoch', '9'], '--epoch 9 is not in'),
        (['run', '--labels', 'a', 'b'], '--labels must be as many'),
        (['run', '--out', 'x.xyz'], '--out must end in one of'),
        (['run', '--out', 'x'], '--out must end in one of'),
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
    assert f'error: {words}' in error or words in error
    assert error.count('\n') == 1


class Net(BaseModel):
    """Convolutions on inputs that need no preparation."""

    def __init__(self, *attentions, channels=3):
        super().__init__(BaseDataPreprocessor())
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            *(
                AttentionConvModule(
                    channels,
                    channels,
                    1,
                    attention=attention,
                    norm_cfg=dict(type='BN'),
                )
                for attention in attentions
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
    points = layer_points(net, batch())
    module = net.layers[1]
    x = net.layers[0](batch()['inputs'])
    trunk = module.bn(module.conv(x))
    shift = module.attention.lambda_ * module.attention.gate(x).tanh()
    # The last attention, not the last layer; as pairs, in any order.
    assert points.layer == 'layers.1'
    assert points.attention is module.attention
    assert points.trunk.shape == (4 * 3 * 64,)
    expected = torch.stack([trunk, trunk + shift[..., None, None]])
    found = torch.stack([points.trunk, points.output])
    torch.testing.assert_close(
        sorted(found.T.tolist()), sorted(expected.flatten(1).T.tolist())
    )
    assert layer_points(net, batch(), 'layers.0').attention is (
        net.layers[0].attention
    )


def test_points_are_at_most_20000_and_always_the_same():
    net = Net(SE).eval()
    points = layer_points(net, batch(8, 32))
    assert points.trunk.shape == points.output.shape == (20_000,)
    again = layer_points(net, batch(8, 32))
    assert again.trunk.equal(points.trunk)
    # From all images and all channels, none twice.
    assert len(points.trunk.unique()) > 19_500
    ratios = (points.output / points.trunk).round(decimals=3).unique()
    assert len(ratios) >= 8


def test_a_layer_is_not_found_by_a_wrong_name():
    net = Net(*[SE] * 5)
    with pytest.raises(UserInputError, match=r'layers\.9.*layers\.0.* more'):
        layer_points(net, batch(), 'layers.9')
    with pytest.raises(UserInputError, match='no layer with attention'):
        layer_points(Net(None), batch())


@pytest.mark.parametrize(
    ('attention', 'low', 'high'),
    [
        # Of trunk -2, 0 and 3; lambda is 0.5 and -0.25.
        (SE, [-2.0, 0.0, 0.0], [0.0, 0.0, 3.0]),
        (SB, [-2.5, -0.5, 2.5], [-1.5, 0.5, 3.5]),
        (dict(SB, gate='sigmoid'), [-2.25, -0.25, 2.75], [-1.5, 0.5, 3.5]),
        (dict(SB, gate='softmax'), [-2.25, -0.25, 2.75], [-1.5, 0.5, 3.5]),
        (dict(SB, gate='relu'), [-torch.inf] * 3, [torch.inf] * 3),
        (dict(SB, gate='none'), [-torch.inf] * 3, [torch.inf] * 3),
    ],
)
def test_bounds_are_those_of_the_formula(attention, low, high):
    built = MODELS.build(dict(attention, in_channels=2, out_channels=2))
    if isinstance(built, ShiftBalance):
        built.lambda_.data = torch.tensor([0.5, -0.25])
    bounds = output_bounds(built, torch.tensor([-2.0, 0.0, 3.0]))
    assert [b.tolist() for b in bounds] == [low, high]


def test_an_attention_of_another_kind_has_no_bounds():
    class Other(ShiftBalance.__base__):
        gate_function = torch.sigmoid

    low, high = output_bounds(Other(2, 2), torch.tensor([1.0]))
    assert (low.item(), high.item()) == (-torch.inf, torch.inf)


@pytest.mark.parametrize('attention', [SE, SB, dict(SB, gate='none')])
def test_the_shift_figure_has_points_bounds_and_diagonal(attention):
    points = layer_points(Net(attention).eval(), batch())
    (axes,) = shift_figure([('a run', points)]).axes
    assert axes.get_title() == 'a run\nlayers.0'
    (scatter,) = (c for c in axes.collections if type(c) is PathCollection)
    offsets = np.asarray(scatter.get_offsets())
    np.testing.assert_equal(offsets[:, 0], points.trunk.numpy())
    np.testing.assert_equal(offsets[:, 1], points.output.numpy())
    (line,) = axes.lines
    ends = points.trunk.min().item(), 0, points.trunk.max().item()
    assert list(line.get_xdata()) == list(line.get_ydata()) == list(ends)
    (band,) = (c for c in axes.collections if isinstance(c, PolyCollection))
    if attention.get('gate') == 'none':
        assert band.get_paths() == []
        return
    corners = band.get_paths()[0].vertices
    low, high = output_bounds(points.attention, torch.tensor(ends))
    assert corners[:, 1].min() == pytest.approx(low.min().item())
    assert corners[:, 1].max() == pytest.approx(high.max().item())
    low, high = output_bounds(points.attention, points.trunk)
    assert (points.output >= low - 1e-5).all()
    assert (points.output <= high + 1e-5).all()
    # And some come near them, so that the check means something.
    assert (points.output - points.trunk).abs().max() > 0.1


def test_a_diverged_network_is_drawn_as_nothing():
    net = Net(SB).eval()
    net.layers[0].conv.weight.data.fill_(torch.nan)
    figure = shift_figure([('a', layer_points(net, batch()))])
    figure.canvas.draw()
    assert not np.isfinite(figure.axes[0].collections[0].get_offsets()).any()


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
    for name, parameter in model.named_parameters():
        if 'gate.bn2' in name:
            parameter.data.normal_()
    torch.save(dict(state_dict=model.state_dict()), work_dir / 'epoch_1.pth')
    # As it was where the run was trained.
    (work_dir / 'last_checkpoint').write_text('elsewhere/run/epoch_1.pth')
    return work_dir


def test_the_tool_draws_a_trained_network(finished, tool, monkeypatch):
    """Building the network is slow: one call, several looks."""
    loaded, drawn = [], []
    load, make = plots.load_trained, plots.shift_figure
    monkeypatch.setattr(
        plots,
        'load_trained',
        lambda *args: loaded.extend(load(*args)) or loaded,
    )
    monkeypatch.setattr(
        plots, 'shift_figure', lambda p: drawn.extend(p) or make(p)
    )
    code, error = tool('plot', 'shift', finished)
    assert code == 0, error
    model, batch = loaded
    saved = torch.load(finished / 'epoch_1.pth')['state_dict']
    for name, value in model.state_dict().items():
        assert value.equal(saved[name]), name
    assert not model.training
    # The validation image; d.jpg is not among those of the training.
    (sample,) = batch['data_samples']
    assert sample.img_path.endswith('d.jpg')
    assert batch['inputs'][0].shape == (3, 300, 300)

    ((label, points),) = drawn
    assert label == 'run'
    assert points.layer == 'backbone.layer7.0.conv.2'
    shift = (points.output - points.trunk).abs()
    assert 0.05 < shift.max() <= 0.1 + 1e-4
    with Image.open(finished / 'shift.png') as image:
        pixels = np.asarray(image.convert('RGB'))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_the_data_may_have_moved(finished, devkit):
    moved = devkit.rename(devkit.with_name('moved'))
    with pytest.raises(UserInputError, match='not found'):
        load_trained(finished)
    _, loaded = load_trained(finished, data_root=str(moved))
    assert str(moved) in loaded['data_samples'][0].img_path


def test_a_classifiers_preprocessor_is_the_runs(tmp_path):
    pytest.importorskip('mmpretrain')
    images = tmp_path / 'images/one'
    images.mkdir(parents=True)
    Image.new('RGB', (32, 32), (127, 128, 129)).save(images / 'a.png')
    (tmp_path / 'classifier.py').write_text(f"""
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='sb_mm.SBMobileNetV2', widen_factor=0.35),
    head=dict(type='ClsHead'),
)
data_preprocessor = dict(mean=[7] * 3, std=[9] * 3)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root={str(tmp_path / 'images')!r},
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    ),
)
""")
    cfg = load_config(str(tmp_path / 'classifier.py'))
    init_default_scope('mmpretrain')
    state = MODELS.build(cfg.model).state_dict()
    weights = str(tmp_path / 'weights.pth')
    # More than tensors, which only who trusts the file will load.
    meta = dict(options=argparse.Namespace())
    torch.save(dict(state_dict=state, meta=meta), weights)
    with pytest.raises(UserInputError, match='--trust-checkpoint'):
        load_trained(tmp_path, weights)
    model, loaded = load_trained(tmp_path, weights, trust=True)
    assert model.data_preprocessor.mean.flatten().tolist() == [7, 7, 7]
    assert layer_points(model, loaded).trunk.numel() > 0
    with pytest.raises(UserInputError, match='--data-root'):
        load_trained(tmp_path, weights, data_root='missing')


def fails(tool, *argv):
    """Run `tools/plot.py shift` and return its one sentence."""
    code, error = tool('plot', 'shift', *argv)
    assert code == 2
    assert error.count('error: ') == 1
    return error.splitlines()[-1]


def test_a_folder_that_is_no_run_is_named(tool, tmp_path):
    missing = tmp_path / 'missing'
    assert f'{missing} does not exist' in fails(tool, missing)
    assert f'{tmp_path} holds no config' in fails(tool, tmp_path)
    (tmp_path / 'mine.py').write_text("model = dict(type='SSD')")
    assert 'has no val_dataloader' in fails(tool, tmp_path)
    error = fails(tool, tmp_path, tmp_path, '--checkpoint', 'x.pth')
    assert '--checkpoint is for a single work directory' in error


def test_what_is_missing_of_a_run_is_named(finished, tool, tmp_path):
    error = fails(tool, finished, '--layer', 'neck')
    assert '--layer neck is no layer with attention' in error
    error = fails(tool, finished, '--data-root', tmp_path / 'nowhere')
    assert 'nowhere' in error
    error = fails(tool, finished, '--checkpoint', 'mine.pth')
    assert 'mine.pth' in error
    torch.save({'x.weight': torch.zeros(1)}, finished / 'epoch_1.pth')
    error = fails(tool, finished)
    assert 'use the config that it was trained with' in error
    (finished / 'epoch_1.pth').unlink()
    assert 'elsewhere/run/epoch_1.pth' in fails(tool, finished)
    (finished / 'last_checkpoint').unlink()
    assert 'holds no checkpoint' in fails(tool, finished)
    assert not (finished / 'shift.png').exists()


def test_functions_return_the_file_that_they_wrote(tmp_path, monkeypatch):
    run = write_stats(tmp_path / 'stats', record(SHIFTED))
    assert plot_attention([run]) == run / 'attention.png'
    given = []
    monkeypatch.setattr(
        plots,
        'load_trained',
        lambda *args: given.append(args) or (Net(SB).eval(), batch()),
    )
    out = tmp_path / 'deep/er/shift.pdf'
    assert plot_shift([run], None, 'x.pth', str(out), 'data', True) == out
    assert out.read_bytes().startswith(b'%PDF')
    assert given == [(run, 'x.pth', 'data', True)]
