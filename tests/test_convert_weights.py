"""Published weights of torchvision and timm become checkpoints of ours."""

import errno
import functools
import runpy
from argparse import Namespace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torchvision
from mmengine.registry import MODELS
from torch import nn

import sb_mm.models
from sb_mm.convert_weights import convert, convert_file
from sb_mm.errors import UserInputError

TOOL = Path(__file__).parents[1] / 'tools/convert_weights.py'
CLASSES = 5
NETWORKS = {
    'mobilenet_v2': ('AttentionMobileNetV2', 1.0),
    'mnasnet1_3': ('AttentionMnasNet', 1.3),
    'shufflenet_v2_x2_0': ('AttentionShuffleNetV2', 2.0),
    'mobilenetv2_035': ('AttentionMobileNetV2', 0.35),  # timm's
    'mnasnet_050': ('AttentionMnasNet', 0.5),
}


def images(n=2, seed=1):
    torch.manual_seed(seed)
    return torch.randn(n, 3, 64, 64)


def published(name='mobilenet_v2'):
    """Build a network of torchvision or timm; every tensor is random."""
    torch.manual_seed(0)
    if name in torchvision.models.list_models():
        model = torchvision.models.get_model(name, num_classes=CLASSES)
    else:
        timm = pytest.importorskip('timm', reason='timm is not installed')
        model = timm.create_model(name, num_classes=CLASSES)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.5)
            norm.momentum = 1.0
    # Statistics of images: no signal dies on the way.
    with torch.no_grad():
        model(images(8, seed=2))
    return model.eval()


@functools.cache
def weights(name='mobilenet_v2'):
    return published(name).state_dict()


def logits(backbone, state):
    """Return what a converted classifier says of the images."""
    with torch.no_grad():
        pooled = backbone.eval()(images())[0].mean((2, 3))
    head = (state[f'head.fc.{kind}'] for kind in ('weight', 'bias'))
    return nn.functional.linear(pooled, *head)


@pytest.mark.parametrize(('name', 'expected'), NETWORKS.items())
@torch.no_grad()
def test_our_network_computes_what_theirs_does(name, expected):
    theirs = published(name)
    converted = convert(theirs.state_dict())
    assert (converted.backbone, converted.widen_factor) == expected
    assert converted.num_classes == CLASSES
    state = converted.state_dict
    backbone = getattr(sb_mm.models, converted.backbone)(expected[1])
    start = 'backbone.'
    own = {k[len(start) :]: v for k, v in state.items() if k.startswith(start)}
    backbone.load_state_dict(own)
    assert len(state) == len(own) + 2
    out = logits(backbone, state)
    torch.testing.assert_close(out, theirs(images()), rtol=1e-4, atol=1e-5)
    # What the images differ in arrives.
    assert (out[0] - out[1]).abs().max() > 0.01 * out.abs().max()


def reordered(state):
    """Put a norm's scale behind its shift, which is of the same shape."""
    scale = state.pop('features.0.1.weight')
    return {**state, 'features.0.1.weight': scale}


def shortened(state):
    del state['features.4.conv.1.0.weight']
    return state


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            lambda s: {**s, 'features.19.0.weight': torch.ones(1)},
            'widen_factor=1.0, but has features.19.0.weight (1,) in the place',
        ),
        (
            lambda s: {**s, 'features.0.0.weight': torch.ones(16, 3, 3, 3)},
            'features.0.0.weight (16, 3, 3, 3) in the place of '
            'backbone.conv1.conv.weight (32, 3, 3, 3): give the weights of',
        ),
        (shortened, 'of backbone.layer3.0.conv.1.conv.weight (144, 1,'),
        (reordered, 'features.0.1.bias (32,) in the place of'),
        (lambda _: {'fc.weight': torch.ones(2, 2)}, 'fc.weight'),
        (lambda _: {}, 'but has'),
    ],
)
def test_another_network_is_refused(change, words):
    with pytest.raises(UserInputError) as error:
        convert(change(dict(weights())), 'tv.pth')
    assert str(error.value).startswith('tv.pth comes closest to Attention')
    assert words in str(error.value)


@pytest.fixture
def src(tmp_path):
    """A file with the weights of torchvision's MobileNetV2."""
    torch.save(weights(), tmp_path / 'tv.pth')
    return str(tmp_path / 'tv.pth')


def test_the_command_prints_a_config_that_loads_the_result(
    src, tmp_path, capsys, monkeypatch
):
    dst = tmp_path / 'ours.pth'
    monkeypatch.setattr('sys.argv', [str(TOOL), src, str(dst)])
    with pytest.raises(SystemExit, match='0'):
        runpy.run_path(str(TOOL), run_name='__main__')
    first, _, config = capsys.readouterr().out.split('\n', 2)
    assert first.startswith(f'{dst}: 314 tensors for AttentionMobileNetV2')
    scope = {}
    exec(config, scope)
    backbone = MODELS.build(scope['backbone'])
    backbone.init_weights()
    out = logits(backbone, torch.load(dst)['state_dict'])
    torch.testing.assert_close(out, published()(images()))


def test_code_in_the_source_runs_only_if_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    # As torchvision's own training script saves its options.
    src, dst = tmp_path / 'tv.pth', tmp_path / 'ours.pth'
    torch.save(dict(model=weights(), args=Namespace(lr=0.1)), src)
    with pytest.raises(UserInputError, match='add --trust-checkpoint'):
        convert_file(str(src), str(dst))
    assert not dst.exists()
    convert_file('~/tv.pth', '~/ours.pth', trust=True)
    # Without what needed the trust.
    content = torch.load(dst, weights_only=True)
    assert content.keys() == {'state_dict', 'meta'}


@pytest.mark.parametrize(
    ('target', 'words'),
    [
        ('no/ours.pth', 'No such file .* in a folder that is there'),
        ('.', 'no name of a file'),
        ('tv.pth', 'tv.pth exists: give another name, or --force'),
        (f'{"long" * 99}.pth', 'cannot be written'),
    ],
    ids=['no folder', 'a folder', 'a file', 'a long name'],
)
def test_a_target_that_cannot_be_is_named(target, words, src, tmp_path):
    with pytest.raises(UserInputError, match=words):
        convert_file(src, f'{tmp_path}/{target}')
    assert [p.name for p in tmp_path.iterdir()] == ['tv.pth']


def test_a_write_that_fails_leaves_everything_as_it_was(
    src, tmp_path, monkeypatch
):
    dst = tmp_path / 'ours.pth'
    dst.write_text('precious')
    full = Mock(side_effect=OSError(errno.ENOSPC, 'No space left'))
    monkeypatch.setattr('sb_mm.files.os.fsync', full)
    with pytest.raises(OSError, match='No space left.*ours.pth'):
        convert_file(src, str(dst), force=True)
    assert dst.read_text() == 'precious'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ours.pth', 'tv.pth']
