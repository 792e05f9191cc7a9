import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import sb_mm.models
from sb_mm.deploy import fold
from sb_mm.errors import UserInputError
from sb_mm.models.layers import AttentionConvModule
from sb_mm.registry import MODELS

ALL = ('expand', 'depthwise', 'project')


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(model):
    """Norms, gates and lambda as training leaves them: none is neutral."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith('lambda_'):
            nn.init.uniform_(parameter, -0.5, 0.5)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            module.running_mean.normal_(std=0.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def backbone(name, **kwargs):
    kwargs.setdefault('widen_factor', 0.35)
    return trained(MODELS.build(dict(type=f'sb_mm.{name}', **kwargs)))


SB = dict(type='sb_mm.ShiftBalance')
SE = dict(type='sb_mm.SqueezeExcite')
DYCONV = dict(type='sb_mm.DynamicConv2d')
NETWORKS = [
    ('AttentionMobileNetV2', {}),
    ('SBMobileNetV2', {}),
    ('SBMobileNetV2', dict(attention_after='conv')),
    ('SBMobileNetV2', dict(attention_after='act')),
    ('SBMobileNetV2', dict(dropout=0.2, gate='softmax')),
    ('SEMobileNetV2', {}),
    ('SEMobileNetV2', dict(attention_layers=ALL)),
    ('SEMobileNetV2', dict(attention_layers=ALL, attention_after='conv')),
    ('AttentionMobileNetV2', dict(attention=dict(SE, gate_norm=False))),
    ('AttentionMobileNetV2', dict(attention=dict(SE, gate_offset=2.0))),
    ('DyConvMobileNetV2', {}),
    ('AttentionMobileNetV2CIFAR', dict(attention=SB)),
    ('AttentionMnasNet', dict(attention=SB, widen_factor=0.5)),
    ('AttentionShuffleNetV2', dict(attention=SB, widen_factor=0.5)),
    (
        'AttentionShuffleNetV2',
        dict(attention_conv_cfg=DYCONV, widen_factor=0.5),
    ),
]


@pytest.mark.parametrize(('name', 'kwargs'), NETWORKS)
@torch.no_grad()
def test_a_folded_backbone_gives_the_same_outputs(name, kwargs):
    model = backbone(name, **kwargs)
    inputs = [torch.randn(batch, 3, 64, 64) for batch in (1, 3)]
    expected = [model(x)[-1] for x in inputs]

    fold(model)

    for x, wanted in zip(inputs, expected, strict=True):
        scale = max(wanted.abs().max(), 1)
        assert (model(x)[-1] - wanted).abs().max() <= 1e-4 * scale
    if 'conv' not in kwargs.values():
        left = (_BatchNorm, nn.Dropout)
        assert not [m for m in model.modules() if isinstance(m, left)]


@pytest.mark.parametrize('batch', [1, 3])
@torch.no_grad()
def test_channels_last_stays_channels_last(batch):
    model = backbone('SBMobileNetV2')
    x = torch.randn(batch, 3, 64, 64)
    expected = model(x)[-1]

    fold(model).to(memory_format=torch.channels_last)
    out = model(x.contiguous(memory_format=torch.channels_last))[-1]

    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('gate', ['tanh', 'sigmoid', 'relu', 'none'])
@pytest.mark.parametrize('after', ['conv', 'norm', 'act'])
@pytest.mark.parametrize('attention', [SB, SE])
@torch.no_grad()
def test_every_layer_folds(attention, after, gate):
    if attention is SB:
        attention = dict(SB, gate=gate)
    layer = trained(
        AttentionConvModule(
            6,
            5,
            3,
            padding=1,
            stride=2,
            attention=attention,
            attention_after=after,
            norm_cfg=dict(type='BN'),
            act_cfg=dict(type='ReLU6'),
        )
    )
    for batch in (1, 4):
        x = torch.randn(batch, 6, 9, 9)
        expected = layer(x)
        out = fold(copy.deepcopy(layer))(x)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_shift_of_one_image_is_a_bias_of_its_convolution():
    layer = trained(
        AttentionConvModule(
            6, 5, 1, attention=SB, norm_cfg=dict(type='BN'), act_cfg=None
        )
    )
    folded = fold(layer)

    with torch.profiler.profile() as profile:
        folded(torch.randn(1, 6, 4, 4))

    names = [event.name for event in profile.events()]
    assert 'aten::conv2d' in names or 'aten::convolution' in names
    # No addition over the pixels behind it.
    last = max(i for i, n in enumerate(names) if 'convolution' in n)
    assert not [n for n in names[last:] if n in ('aten::add', 'aten::add_')]


@torch.no_grad()
def test_parts_of_other_packages_fold_too():
    model = trained(
        nn.Sequential(
            ConvModule(3, 4, 3, norm_cfg=dict(type='BN'), bias='auto'),
            nn.Conv2d(4, 5, 1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(5 * 36, 7),
            nn.BatchNorm1d(7),
        )
    )
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)

    torch.testing.assert_close(fold(model)(x), expected, rtol=1e-4, atol=1e-5)
    assert not [m for m in model.modules() if isinstance(m, _BatchNorm)]


@torch.no_grad()
def test_a_norm_that_does_not_follow_a_convolution_stays():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    model.append(nn.BatchNorm2d(4).eval())
    model[2].running_mean.uniform_()
    model.append(
        ConvModule(
            4, 4, 1, norm_cfg=dict(type='BN'), order=('norm', 'conv', 'act')
        ).eval()
    )
    model.append(trained(ConvModule(4, 5, 1, norm_cfg=dict(type='BN'))))
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)

    torch.testing.assert_close(fold(model)(x), expected, rtol=1e-4, atol=1e-5)
    assert sum(isinstance(m, _BatchNorm) for m in model.modules()) == 2


@torch.no_grad()
def test_a_folded_network_does_not_train_alone_or_as_a_part():
    model = backbone('SBMobileNetV2', frozen_stages=2).train()
    x = torch.randn(1, 3, 64, 64)
    expected = copy.deepcopy(model).eval()(x)[-1]
    model.switch_to_deploy()
    torch.testing.assert_close(model(x)[-1], expected, rtol=1e-4, atol=1e-4)
    gate = fold(trained(AttentionConvModule(6, 5, 1, attention=SE)))
    for network in (model, nn.Sequential(model), copy.deepcopy(model), gate):
        with pytest.raises(UserInputError, match='This network is folded'):
            network.train()
    model.eval()
    torch.testing.assert_close(model(x)[-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'part', [nn.Dropout(), nn.ReLU(), nn.Sequential(nn.Dropout())]
)
def test_training_mode_of_any_part_is_refused(part):
    model = nn.Sequential(backbone('SBMobileNetV2'), part).eval()
    part.train()
    with pytest.raises(UserInputError, match=r'\(its 1 is\)'):
        fold(model)
    model.eval()
    model.training = True
    with pytest.raises(UserInputError, match='is in training mode: call'):
        fold(model)
    assert [m for m in model.modules() if isinstance(m, _BatchNorm)]


def test_folding_twice_is_refused():
    model = fold(backbone('SBMobileNetV2'))
    with pytest.raises(UserInputError, match='folded already'):
        fold(model)
    with pytest.raises(UserInputError, match='folded already'):
        fold(nn.Sequential(model).eval())
    with pytest.raises(UserInputError, match='folded already'):
        model.switch_to_deploy()


def test_nothing_to_fold_is_refused():
    with pytest.raises(UserInputError, match='nothing to fold'):
        fold(nn.Conv2d(3, 4, 1).eval())


@torch.no_grad()
def test_a_detector_folds():
    pytest.importorskip('mmdet')
    from pathlib import Path

    from mmdet.registry import MODELS as MMDET_MODELS
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    root = Path(sb_mm.models.__file__).parents[2]
    name = 'ssdlite_mobilenetv2-sb-w0.35_1xb32-200e_voc0712.py'
    cfg = Config.fromfile(root / 'configs/voc' / name)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = trained(MMDET_MODELS.build(cfg.model))
    x = torch.randn(1, 3, 300, 300)
    expected = model(x, mode='tensor')

    out = fold(model)(x, mode='tensor')

    for kind, wanted in zip(out, expected, strict=True):
        for a, b in zip(kind, wanted, strict=True):
            scale = max(b.abs().max().item(), 1)
            assert (a - b).abs().max() <= 1e-4 * scale
    assert not [m for m in model.modules() if isinstance(m, _BatchNorm)]
