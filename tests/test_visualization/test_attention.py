"""Figures of what attention does, and what is said if they cannot be drawn."""

import argparse
import json
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from PIL import Image
from tiny_detector import SIDE, cut_networks, detector, write_config
from torch import nn

from sb_mm.errors import UserInputError
from sb_mm.models.layers import AttentionConvModule
from sb_mm.visualization.attention import (
    attention_figure,
    layer_points,
    plot_attention,
    plot_shift,
    read_attention_stats,
)
from sb_mm.visualization.work_dir import load_trained

TOOL = Path(__file__).resolve().parents[2] / 'tools/plot.py'
SB = dict(type='sb_mm.ShiftBalance')
SE = dict(type='sb_mm.SqueezeExcite')
STATIC = {'backbone.layer1.0.conv.0': dict(trunk_std=1.0, output_std=1.5)}
GATED = {
    'backbone.layer1.0.conv.0': dict(
        trunk_std=1.0, output_std=0.5, saturated=0.25, inactivated=0.125
    ),
    'backbone.layer1.0.shortcut': dict(trunk_std=1.0, output_std=1.0),
    'backbone.layer1.0': dict(
        trunk_std=2.0, output_std=None, saturated=0.5, inactivated=0.0
    ),
    'neck.extra_layers.0.conv.0': dict(trunk_std=3.0, output_std=3.0),
}
SHIFTED = {
    'layers.0.0.branch1.0': dict(output_std=1, lambda_mean=0.2, lambda_std=0.1)
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
    return str(work_dir)


def lines_of(axes):
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
    }


def test_the_attention_figure_has_the_numbers_of_the_records():
    records = [record(STATIC), record(GATED, 7)]
    figure = attention_figure(['a', 'b'], records)
    std, inactivated, saturated = np.array(figure.axes).reshape(-1, 2)
    assert [a.get_title() for a in std] == ['a, epoch 1', 'b, epoch 7']
    assert [*lines_of(std[0]).values()] == [([0], [1.5]), ([0], [1.0])]
    gated = lines_of(std[1])
    assert gated['trunk T(x)'] == ([0, 1, 2, 3], [1.0, 1.0, 2.0, 3.0])
    # What was not finite is a gap, and the other layers keep their places.
    np.testing.assert_equal(gated['layer output'][1], [0.5, 1.0, np.nan, 3.0])
    assert [*lines_of(inactivated[1]).values()] == [([0, 2], [0.125, 0.0])]
    assert [*lines_of(saturated[1]).values()] == [([0, 2], [0.25, 0.5])]
    # A tick at the first layer of each block.
    assert list(saturated[1].get_xticks()) == [0, 3]

    # Lambda with its spread.
    _, axes = attention_figure(['c'], [record(SHIFTED)]).axes
    ((means, _, (spread,)),) = axes.containers
    assert list(means.get_ydata()) == [0.2]
    np.testing.assert_allclose(spread.get_segments(), [[[0, 0.1], [0, 0.3]]])


def test_the_newest_epochs_of_all_starts_are_read(tmp_path):
    write_stats(tmp_path, record(GATED, 1), record(GATED, 2), record(GATED, 5))
    write_stats(tmp_path, record(STATIC, 2), log='20250102_000000')
    assert read_attention_stats(tmp_path, 1) == record(GATED, 1)
    assert read_attention_stats(tmp_path) == record(STATIC, 2)
    with pytest.raises(UserInputError, match='epoch 5 is not.*1 to 2'):
        read_attention_stats(tmp_path, 5)


def test_the_tool_draws_trainings_side_by_side(tmp_path, monkeypatch, capsys):
    runs = [
        write_stats(tmp_path / name, record(layers, 1), record(layers, 2))
        for name, layers in (('static', STATIC), ('sb', SHIFTED))
    ]
    out = tmp_path / 'new/two.svg'
    argv = [str(TOOL), 'attention', *runs, '--out', str(out), '--epoch', '1']
    monkeypatch.setattr('sys.argv', argv)
    with pytest.raises(SystemExit, match='0'):
        runpy.run_path(str(TOOL), run_name='__main__')
    assert capsys.readouterr().out == f'{out}\n'
    assert f'<!-- {runs[1]}, epoch 1 -->' in out.read_text()


@pytest.mark.parametrize(
    ('folder', 'options', 'words'),
    [
        ('nowhere', {}, 'The work directory nowhere does not exist'),
        ('.', {}, 'default_hooks.attention.type=sb_mm.AttentionStatsHook'),
        ('run', dict(epoch=9), '--epoch 9 is not in'),
        ('run', dict(labels=['a', 'b']), '--labels must be as many'),
        ('run', dict(out='x.xyz'), 'x.xyz cannot be written .* formats: '),
        ('run', dict(out='x'), "Format '' is not supported"),
        ('run', dict(out='file/x.png'), 'cannot be written'),
    ],
)
def test_what_keeps_attention_from_being_drawn_is_named(
    folder, options, words, tmp_path, monkeypatch
):
    write_stats(tmp_path / 'run', record(STATIC))
    (tmp_path / 'file').touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserInputError, match=words):
        plot_attention([folder], **options)


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
    with pytest.raises(UserInputError, match=r'layers\.9.*layers\.0'):
        layer_points(net, batch(), 'layers.9')
    with pytest.raises(UserInputError, match='no layer with attention'):
        layer_points(Net(None), batch())
    # Of many, some, always the same.
    _, trunk, _ = layer_points(net, batch(8, 32))
    assert trunk.shape == (20_000,)
    assert layer_points(net, batch(8, 32))[1].equal(trunk)


@pytest.fixture
def finished(tiny_devkit, tmp_path, monkeypatch):
    """A work directory as a training leaves it, untrained."""
    pytest.importorskip('mmdet')
    cut_networks(monkeypatch)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    (work_dir / 'older.py').write_text('model = None')
    os.utime(work_dir / 'older.py', (0, 0))
    write_config(tiny_devkit(), work_dir / 'mine.py')
    content = dict(state_dict=detector().state_dict())
    torch.save(content, work_dir / 'epoch_1.pth')
    torch.save(argparse.Namespace(), tmp_path / 'evil.pth')
    # As it was where the network was trained.
    (work_dir / 'last_checkpoint').write_text('elsewhere/run/epoch_1.pth')
    return work_dir


def test_a_trained_network_is_found_and_drawn(finished, tmp_path):
    model, loaded = load_trained(finished)
    saved = torch.load(finished / 'epoch_1.pth')['state_dict']
    for name, value in model.state_dict().items():
        assert value.equal(saved[name]), name
    assert not model.training
    # The validation image; d.jpg is not among those of the training.
    (sample,) = loaded['data_samples']
    assert sample.img_path.endswith('d.jpg')
    assert loaded['inputs'][0].shape == (3, SIDE, SIDE)

    moved = (tmp_path / 'devkit').rename(tmp_path / 'moved')
    with pytest.raises(UserInputError, match='not found'):
        load_trained(finished)
    file = plot_shift([str(finished)], data_root=str(moved))
    assert file == finished / 'shift.png'
    assert Image.open(file).size[1] > 500


def test_what_is_missing_of_a_training_is_named(finished, tmp_path):
    def fails(words, *folders, **options):
        with pytest.raises(UserInputError, match=words):
            plot_shift([str(folder) for folder in folders], **options)

    (tmp_path / 'x').mkdir()
    fails('no does not exist', tmp_path / 'no')
    fails('holds no config', tmp_path / 'x')
    (tmp_path / 'x/mine.py').write_text("model = dict(type='SSD')")
    fails('has no val_dataloader', tmp_path / 'x')
    fails('for a single work', finished, finished, checkpoint='x.pth')
    fails('neck is no layer with attention', finished, layer='neck')
    fails('mine.pth does not exist', finished, checkpoint='mine.pth')
    evil = str(tmp_path / 'evil.pth')
    fails('--trust-checkpoint', finished, checkpoint=evil)
    (finished / 'epoch_1.pth').unlink()
    fails('elsewhere/run/epoch_1.pth', finished)
    (finished / 'last_checkpoint').unlink()
    fails('holds no checkpoint', finished)
    assert not (finished / 'shift.png').exists()
