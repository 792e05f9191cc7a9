"""Published weights of torchvision and timm become checkpoints of ours."""

import functools
import os
import runpy
from argparse import Namespace
from pathlib import Path

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
TORCHVISION = {
    'mobilenet_v2': ('AttentionMobileNetV2', 1.0),
    'mnasnet1_3': ('AttentionMnasNet', 1.3),
    'shufflenet_v2_x2_0': ('AttentionShuffleNetV2', 2.0),
}
TIMM = {
    'mobilenetv2_035': ('AttentionMobileNetV2', 0.35),
    'mnasnet_050': ('AttentionMnasNet', 0.5),
}


def images(n=2, seed=1):
    torch.manual_seed(seed)
    return torch.randn(n, 3, 64, 64)


def published(name='mobilenet_v2'):
    """Build a network of torchvision or timm; every tensor is random."""
    torch.manual_seed(0)
    if name in TORCHVISION:
        model = torchvision.models.get_model(name, num_classes=CLASSES)
    else:
        timm = pytest.importorskip('timm', reason='timm is not installed')
        model = timm.create_model(name, num_classes=CLASSES)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(0, 0.5)
        norm.momentum = 1.0
    # Statistics near the true ones: no signal dies on the way.
    with torch.no_grad():
        model(images(4, seed=2))
    for norm in norms:
        var = norm.running_var.clamp(min=norm.running_var.mean() / 4)
        norm.running_mean += 0.2 * var.sqrt() * torch.randn_like(var)
        norm.running_var.copy_(var * (0.5 + torch.rand_like(var)))
        norm.num_batches_tracked.random_(1000)
    return model.eval()


@functools.cache
def weights(name='mobilenet_v2'):
    return published(name).state_dict()


def features_of(model):
    """Return the last feature map of a network of torchvision or timm."""
    seen = []
    pool = getattr(model, 'global_pool', None)
    if pool is not None:
        pool.register_forward_pre_hook(lambda _, args: seen.extend(args))
    else:
        # torchvision pools by functions: take what came out last before.
        last = getattr(model, 'features', getattr(model, 'layers', None))
        last = model.conv5 if last is None else last
        last.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        model(images())
    return seen[0]


@pytest.mark.parametrize(
    ('name', 'expected'), [*TORCHVISION.items(), *TIMM.items()]
)
def test_our_network_computes_exactly_what_theirs_does(name, expected):
    theirs = published(name)
    converted = convert(theirs.state_dict())
    assert (converted.backbone, converted.widen_factor) == expected
    assert converted.num_classes == CLASSES
    state = dict(converted.state_dict)
    fc = [state.pop(f'head.fc.{kind}') for kind in ('weight', 'bias')]
    for ours, other in zip(fc, list(theirs.parameters())[-2:], strict=True):
        assert torch.equal(ours, other)

    backbone = getattr(sb_mm.models, converted.backbone)(expected[1])
    backbone.load_state_dict(
        {k.removeprefix('backbone.'): v for k, v in state.items()}
    )
    with torch.no_grad():
        (out,) = backbone.eval()(images())
    assert torch.equal(out, features_of(theirs))
    # What the images differ in arrives.
    assert (out[0] - out[1]).abs().max() > 0.01 * out.abs().max()


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            {'features.19.0.weight': torch.ones(1)},
            'MobileNetV2 of widen_factor=1.0, which has no features.19.0.w',
        ),
        (
            {'features.4.conv.1.0.weight': None},
            'lacks what is here named backbone.layer3.0.conv.1.conv.weight',
        ),
        (
            {'features.0.0.weight': torch.ones(16, 3, 3, 3)},
            'other shapes have backbone.conv1.conv.weight '
            '((16, 3, 3, 3) instead of (32, 3, 3, 3))',
        ),
        (
            {'features.17.conv.2.weight': torch.ones(40, 960, 1, 1)},
            'MobileNetV2 of widen_factor=0.125, but other shapes have',
        ),
        ({'features.17.conv.2.weight': torch.ones(())}, 'other shapes have'),
    ],
)
def test_a_changed_network_is_refused(changes, words):
    state = {**weights(), **changes}
    state = {k: v for k, v in state.items() if v is not None}
    with pytest.raises(UserInputError) as error:
        convert(state, 'tv.pth')
    assert str(error.value).startswith('tv.pth comes closest to torchvision')
    assert words in str(error.value)


@pytest.mark.parametrize('name', ['semnasnet_050', 'mobilenetv2_110d'])
def test_other_networks_are_refused(name):
    timm = pytest.importorskip('timm', reason='timm is not installed')
    with torch.device('meta'):
        state = timm.create_model(name).state_dict()
    with pytest.raises(UserInputError, match='closest to timm'):
        convert(state)
    with pytest.raises(UserInputError, match='holds none of'):
        convert({'fc.weight': torch.ones(2, 2)})


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
    assert first.startswith(f"{dst}: 314 tensors of torchvision's MobileNetV2")
    scope = {}
    exec(config, scope)
    backbone = MODELS.build(scope['backbone'])
    backbone.init_weights()
    with torch.no_grad():
        (features,) = backbone.eval()(images())
    assert torch.equal(features, features_of(published()))


def test_code_in_the_source_runs_only_if_it_is_trusted(tmp_path):
    # As torchvision's own training script saves its options.
    src, dst = tmp_path / 'tv.pth', tmp_path / 'ours.pth'
    torch.save(dict(model=weights(), args=Namespace(lr=0.1)), src)
    with pytest.raises(UserInputError, match='add --trust-checkpoint'):
        convert_file(str(src), str(dst))
    assert not dst.exists()
    convert_file(str(src), str(dst), trust=True)
    # Without what needed the trust.
    content = torch.load(dst, weights_only=True)
    assert content.keys() == {'state_dict', 'meta'}


@pytest.mark.parametrize(
    ('target', 'words'),
    [
        ('no/ours.pth', 'has no folder: make it'),
        ('.', 'is a folder: give the name of a file in it'),
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
    monkeypatch.setenv('HOME', str(tmp_path))
    dst = tmp_path / 'ours.pth'
    dst.write_text('precious')
    with monkeypatch.context() as full:
        full.setattr(
            'sb_mm.files.os.fsync',
            lambda _: os.write(os.open('/dev/full', os.O_WRONLY), b'x'),
        )
        with pytest.raises(UserInputError, match='cannot be written .*space'):
            convert_file(src, '~/ours.pth', force=True)
    assert dst.read_text() == 'precious'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ours.pth', 'tv.pth']
    convert_file('~/tv.pth', '~/ours.pth', force=True)
    assert 'state_dict' in torch.load(dst, weights_only=True)
