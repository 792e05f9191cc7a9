"""torchvision's published weights become checkpoints of ours."""

import functools
import os
import runpy
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from sb_mm.convert_weights import convert, convert_file
from sb_mm.errors import UserInputError
from sb_mm.models import (
    AttentionMnasNet,
    AttentionMobileNetV2,
    AttentionShuffleNetV2,
)

models = pytest.importorskip('torchvision.models')
TOOL = Path(__file__).parents[1] / 'tools' / 'convert_weights.py'
CLASSES = 5

NETWORKS = [
    ('mobilenet_v2', dict(width_mult=0.1), AttentionMobileNetV2, 0.1),
    ('mobilenet_v2', dict(width_mult=0.35), AttentionMobileNetV2, 0.35),
    ('mobilenet_v2', dict(width_mult=1.0), AttentionMobileNetV2, 1.0),
    ('mobilenet_v2', dict(width_mult=1.4), AttentionMobileNetV2, 1.4),
    ('mnasnet0_5', {}, AttentionMnasNet, 0.5),
    ('mnasnet0_75', {}, AttentionMnasNet, 0.75),
    ('mnasnet1_0', {}, AttentionMnasNet, 1.0),
    ('mnasnet1_3', {}, AttentionMnasNet, 1.3),
    ('shufflenet_v2_x0_5', {}, AttentionShuffleNetV2, 0.5),
    ('shufflenet_v2_x1_0', {}, AttentionShuffleNetV2, 1.0),
    ('shufflenet_v2_x1_5', {}, AttentionShuffleNetV2, 1.5),
    ('shufflenet_v2_x2_0', {}, AttentionShuffleNetV2, 2.0),
]


def images(n=2, seed=1):
    torch.manual_seed(seed)
    return torch.randn(n, 3, 64, 64, dtype=torch.double)


def published(name='mobilenet_v2', **kwargs):
    """Build torchvision's network; every tensor of it is random."""
    torch.manual_seed(0)
    small = dict(width_mult=0.1) if name == 'mobilenet_v2' else {}
    kwargs = {'num_classes': CLASSES, **small, **kwargs}
    model = getattr(models, name)(**kwargs)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(0, 0.5)
        norm.momentum = 1.0
    # Statistics near the true ones: no signal dies on the way.
    with torch.no_grad():
        model(images(4, seed=2).float())
    for norm in norms:
        var = norm.running_var.clamp(min=norm.running_var.mean() / 4)
        norm.running_mean += 0.2 * var.sqrt() * torch.randn_like(var)
        norm.running_var.copy_(var * (0.5 + torch.rand_like(var)))
        norm.num_batches_tracked.random_(1000)
    return model.eval()


@functools.cache
def weights(name='mobilenet_v2'):
    return published(name).state_dict()


def logits(state, backbone):
    """What our network computes with a converted checkpoint's tensors."""
    own = {
        k.removeprefix('backbone.'): v
        for k, v in state.items()
        if not k.startswith('head.')
    }
    backbone.load_state_dict(own)
    features = backbone.double().eval()(images())[-1].mean((2, 3))
    weight, bias = (state[f'head.fc.{k}'].double() for k in ('weight', 'bias'))
    return features @ weight.T + bias


@pytest.mark.parametrize(('name', 'kwargs', 'kind', 'width'), NETWORKS)
def test_our_network_computes_what_torchvision_s_does(
    name, kwargs, kind, width
):
    theirs = published(name, **kwargs).double()
    converted = convert(theirs.state_dict())
    with torch.no_grad():
        expected = theirs(images())
        out = logits(converted.state_dict, kind(width))
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    # What the images differ in arrives.
    difference = (expected[0] - expected[1]).abs().max()
    assert difference > 0.01 * expected.abs().max()
    assert converted.backbone == kind.__name__
    assert converted.widen_factor == width
    assert converted.num_classes == CLASSES
    assert len(converted.state_dict) == len(theirs.state_dict())


@pytest.mark.parametrize(
    ('name', 'host'),
    [('mobilenet_v2', 'MobileNetV2'), ('shufflenet_v2_x0_5', 'ShuffleNetV2')],
)
def test_the_names_are_those_of_an_mmpretrain_classifier(name, host):
    registry = pytest.importorskip('mmpretrain.registry')
    pytest.importorskip('mmpretrain.models')
    converted = convert(weights(name))
    head = dict(in_channels=1280 if name == 'mobilenet_v2' else 1024)
    model = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(
            type=f'mmpretrain.{host}', widen_factor=converted.widen_factor
        ),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(
            type='mmpretrain.LinearClsHead', num_classes=CLASSES, **head
        ),
    )
    registry.MODELS.build(model).load_state_dict(converted.state_dict)


def test_old_files_without_batch_counters_convert():
    state = weights()
    old = {k: v for k, v in state.items() if 'num_batches' not in k}
    converted = convert(old).state_dict
    assert len(converted) == len(old)
    assert logits(converted, AttentionMobileNetV2(0.1)).shape == (2, CLASSES)


# ---- files -------------------------------------------------------------


def save(path, state=None, wrap=dict):
    state = weights() if state is None else state
    torch.save(wrap(state), path)
    return str(path)


WRAPS = {
    'bare': dict,
    'state_dict': lambda state: dict(state_dict=state, epoch=3),
    'model': lambda state: dict(model=state, optimizer={}),
    'parallel': lambda state: dict(
        state_dict={f'module.{k}': v for k, v in state.items()}
    ),
}


@pytest.mark.parametrize('wrap', list(WRAPS))
def test_a_converted_file_holds_the_same_however_the_weights_are_wrapped(
    wrap, tmp_path
):
    expected = convert(weights())
    src = save(tmp_path / 'tv.pth', wrap=WRAPS[wrap])
    convert_file(src, str(tmp_path / 'ours.pth'))
    content = torch.load(tmp_path / 'ours.pth', weights_only=True)
    assert content['state_dict'].keys() == expected.state_dict.keys()
    for name, value in expected.state_dict.items():
        assert content['state_dict'][name].equal(value), name
    assert content['meta'] == dict(
        source='tv.pth',
        backbone='AttentionMobileNetV2',
        widen_factor=0.1,
        num_classes=CLASSES,
    )


@pytest.fixture
def tool(capsys, monkeypatch):
    """Run the command in this process; return its code and output."""

    def run(*args):
        argv = [str(TOOL), *map(str, args)]
        monkeypatch.setattr(sys, 'argv', argv)
        monkeypatch.setattr(sys, 'path', sys.path[:])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOL), run_name='__main__')
        return stop.value.code, capsys.readouterr()

    return run


def test_the_command_prints_a_config_that_loads_the_result(tool, tmp_path):
    theirs = published('mnasnet0_5')
    src, dst = save(tmp_path / 'tv.pth', theirs.state_dict()), tmp_path / 'o'
    code, printed = tool(src, dst)
    assert code == 0
    first, _, config = printed.out.split('\n', 2)
    assert first == (
        f'{dst}: 314 tensors of a MNASNet with widen_factor=0.5 and 5 classes.'
    )
    scope = {}
    exec(config, scope)
    backbone = MODELS.build(scope['backbone'])
    backbone.init_weights()
    with torch.no_grad():
        expected = theirs.layers(images().float())
        out = backbone.eval()(images().float())[-1]
    torch.testing.assert_close(out, expected)


# ---- what cannot be converted ------------------------------------------


def refused(result, *words):
    code, printed = result
    error = printed.err
    assert code == 2, error
    assert printed.out == ''
    assert error.startswith('error: ')
    assert len(error.splitlines()) == 1
    for word in words:
        assert word in error


def files(folder):
    """The folder's files, hidden ones too, and what is in them."""
    return {
        p.relative_to(folder): p.read_bytes()
        for p in sorted(folder.rglob('*'))
        if p.is_file()
    }


def test_a_missing_source_is_named(tool, tmp_path):
    refused(
        tool(tmp_path / 'no.pth', tmp_path / 'ours.pth'),
        'no.pth does not exist',
    )
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ([torch.ones(1)], ('a list, is no dictionary',)),
        ({}, ('holds none of the networks', 'but no tensors')),
        (
            {'layer1.0.conv1.weight': torch.ones(1)},
            (
                'tv.pth holds none of the networks MobileNetV2, MNASNet, '
                'ShuffleNetV2 of torchvision, but layer1.0.conv1.weight: give',
            ),
        ),
        (
            {'backbone.conv1.conv.weight': torch.ones(1)},
            ('but backbone.conv1.conv.weight',),
        ),
    ],
    ids=['list', 'empty', 'another network', 'ours'],
)
def test_a_file_of_another_kind_is_named(content, words, tool, tmp_path):
    src = tmp_path / 'tv.pth'
    torch.save(content, src)
    refused(tool(src, tmp_path / 'ours.pth'), *words)
    assert list(files(tmp_path)) == [Path('tv.pth')]


def test_a_file_that_is_no_checkpoint_is_called_damaged(tool, tmp_path):
    (tmp_path / 'tv.pth').write_text('weights, honestly\n' * 9)
    result = tool(tmp_path / 'tv.pth', tmp_path / 'ours.pth')
    refused(result, 'tv.pth', 'damaged')


@pytest.mark.filterwarnings('ignore:Environment variable TORCH_FORCE')
def test_code_in_the_source_runs_only_if_it_is_trusted(tool, tmp_path):
    # As torchvision's own training script saves its options.
    src, dst = tmp_path / 'tv.pth', tmp_path / 'ours.pth'
    torch.save(dict(model=weights(), args=Namespace(lr=0.1)), src)
    refused(tool(src, dst), 'Namespace', 'add --trust-checkpoint')
    assert not dst.exists()
    assert tool(src, dst, '--trust-checkpoint')[0] == 0
    # Without what needed the trust.
    content = torch.load(dst, weights_only=True)
    assert content.keys() == {'state_dict', 'meta'}


@pytest.mark.parametrize(
    ('name', 'key'),
    [
        ('mobilenet_v2', 'features.19.0.weight'),
        ('mobilenet_v2', 'features.3.conv.3.num_batches'),
        ('mobilenet_v2', 'features.0.0.bias'),  # the rule fits, we have none
        ('mobilenet_v2', 'features.1.conv.1.0.weight'),
        ('mobilenet_v2', 'xfeatures.0.0.weight'),
        ('mobilenet_v2', 'features.0.0x.weight'),
        ('mnasnet0_5', 'layers.2.weight'),
        ('mnasnet0_5', 'layers.9.3.layers.0.weight'),
        ('shufflenet_v2_x0_5', 'stage2.1.branch1.0.weight'),
        ('shufflenet_v2_x0_5', 'stage5.0.branch2.0.weight'),
        ('shufflenet_v2_x0_5', 'classifier.1.weight'),
    ],
)
def test_a_tensor_that_no_rule_knows_is_named(name, key):
    state = {**weights(name), key: torch.ones(1)}
    message = f'tv holds tensors that torchvision.* have \\({key}\\): give'
    with pytest.raises(UserInputError, match=message):
        convert(state, 'tv')


@pytest.mark.parametrize(
    ('gone', 'ours'),
    [
        ('features.4.conv.1.0.weight', 'backbone.layer3.0.conv.1.conv.weight'),
        ('features.0.1.running_var', 'backbone.conv1.bn.running_var'),
        ('classifier.1.weight', 'head.fc.weight'),
        ('classifier.1.bias', 'head.fc.bias'),
    ],
)
def test_a_tensor_that_is_missing_is_named(gone, ours):
    state = dict(weights())
    del state[gone]
    message = f'tv lacks tensors of .*, here named {ours}: give'
    with pytest.raises(UserInputError, match=message):
        convert(state, 'tv')


@pytest.mark.parametrize(
    ('name', 'key', 'shape', 'words'),
    [
        # The stem that version 1 of MNASNet had at every width.
        (
            'mnasnet0_5',
            'layers.0.weight',
            (32, 3, 3, 3),
            'MNASNet of widen_factor=0.5, but 1 tensors have other shapes '
            '(backbone.conv1.conv.weight is (32, 3, 3, 3) instead of '
            '(16, 3, 3, 3))',
        ),
        (
            'shufflenet_v2_x0_5',
            'stage2.0.branch1.2.weight',
            (55, 24, 1, 1),
            'ShuffleNetV2 of widen_factor=1.0, but',
        ),
        (
            'mobilenet_v2',
            'features.17.conv.2.weight',
            (40, 96, 1, 1),
            'MobileNetV2 of widen_factor=0.125, but',
        ),
        ('mobilenet_v2', 'features.17.conv.2.weight', (), 'MobileNetV2 of'),
        ('mobilenet_v2', 'classifier.1.weight', (), 'head.fc.weight is ()'),
        ('mobilenet_v2', 'classifier.1.bias', (4,), 'head.fc.bias is (4,)'),
    ],
)
def test_shapes_of_no_width_are_named(name, key, shape, words):
    state = {**weights(name), key: torch.ones(shape)}
    with pytest.raises(UserInputError) as error:
        convert(state, 'tv')
    assert 'tv comes closest to torchvision' in str(error.value)
    assert words in str(error.value)


# ---- the target --------------------------------------------------------


def test_an_existing_target_is_kept_unless_forced(tool, tmp_path):
    src, dst = save(tmp_path / 'tv.pth'), tmp_path / 'ours.pth'
    dst.write_text('precious')
    refused(tool(src, dst), 'ours.pth exists', '--force')
    assert dst.read_text() == 'precious'
    assert tool(src, dst, '--force')[0] == 0
    content = torch.load(dst, weights_only=True)
    assert 'backbone.conv1.conv.weight' in content['state_dict']
    assert sorted(os.listdir(tmp_path)) == ['ours.pth', 'tv.pth']


@pytest.mark.parametrize('link', [False, True])
@pytest.mark.parametrize('force', [False, True])
def test_the_source_is_no_target(link, force, tool, tmp_path):
    src = Path(save(tmp_path / 'tv.pth'))
    dst = tmp_path / 'link.pth' if link else src
    if link:
        dst.symlink_to(src)
    before = files(tmp_path)
    refused(tool(src, dst, *['--force'] * force), 'is the source itself')
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ('target', 'words'),
    [
        ('no/ours.pth', 'no/ours.pth does not exist: make it'),
        ('tv.pth/ours.pth', 'tv.pth/ours.pth does not exist: make it'),
        ('.', 'is a folder: give the name of a file in it'),
        (f'{"long" * 99}.pth', 'cannot be written'),
    ],
    ids=['no folder', 'a file', 'a folder', 'a long name'],
)
def test_a_target_that_cannot_be_is_named(target, words, tool, tmp_path):
    src = save(tmp_path / 'tv.pth')
    before = files(tmp_path)
    refused(tool(src, f'{tmp_path}/{target}'), words)
    assert files(tmp_path) == before


@pytest.mark.parametrize('error', [OSError('disk full'), RuntimeError('full')])
def test_a_write_that_fails_leaves_everything_as_it_was(
    error, tmp_path, monkeypatch
):
    src, dst = save(tmp_path / 'tv.pth'), tmp_path / 'ours.pth'
    dst.write_text('precious')
    before = files(tmp_path)

    def fail(content, file):
        file.write(b'half of it')
        raise error

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(UserInputError, match='cannot be written .*full'):
        convert_file(src, str(dst), force=True)
    assert files(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ['ours.pth', 'tv.pth']


def test_the_target_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    save(tmp_path / 'tv.pth')
    convert_file('~/tv.pth', '~/ours.pth')
    assert (tmp_path / 'ours.pth').is_file()
    with pytest.raises(UserInputError, match='is the source itself'):
        convert_file('~/tv.pth', str(tmp_path / 'tv.pth'), force=True)
