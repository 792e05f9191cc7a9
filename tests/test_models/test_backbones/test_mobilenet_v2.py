"""MobileNetV2 with attention: counts, host features, published weights."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from torch.nn.modules.batchnorm import _BatchNorm

from sb_mm.models import (
    AttentionMobileNetV2,
    DyConvMobileNetV2,
    SBMobileNetV2,
    SEMobileNetV2,
)

ALL = ('expand', 'depthwise', 'project')
NETWORKS = {
    'static': AttentionMobileNetV2,
    'sb': SBMobileNetV2,
    'se': SEMobileNetV2,
    'se layer-wise': lambda **kw: SEMobileNetV2(attention_layers=ALL, **kw),
    'dyconv': DyConvMobileNetV2,
}


def build(network, **kwargs):
    torch.manual_seed(0)
    return NETWORKS[network](**{'widen_factor': 0.1, **kwargs})


def images(n=2, size=64, seed=1):
    torch.manual_seed(seed)
    return torch.randn(n, 3, size, size)


def shake(model):
    """Give norms and gates values at which every part matters."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data.uniform_(0.5, 1.5)
        if name.endswith('lambda_'):
            parameter.data.uniform_(0.5, 1)
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
    model.eval()  # mmpretrain's returns nothing
    return model


# What the paper prints, to the last digit (arXiv:2103.13080, Tables 1, 2).
COUNTS = [
    (AttentionMobileNetV2, (1677128, 1968680, 2636424, 3504872), {}),
    (SBMobileNetV2, (2700348, 4005604, 7201216, 11529778), {}),
    (SEMobileNetV2, (1735880, 2086024, 2898408, 3966312), {}),
    (DyConvMobileNetV2, (2689836, 3950650, 7018418, 11157864), {}),
    (
        SEMobileNetV2,
        (2499528,),
        dict(attention_layers=('expand', 'project')),
    ),
    (
        SBMobileNetV2,
        (2502664,),
        dict(attention_layers=('expand', 'project')),
    ),
    (SEMobileNetV2, (2694604,), dict(attention_layers=ALL)),
    (SBMobileNetV2, (2700348,), dict(attention_layers=ALL)),
]


@pytest.mark.parametrize(
    ('network', 'width', 'count', 'kwargs'),
    [
        (network, width, count, kwargs)
        for network, counts, kwargs in COUNTS
        for width, count in zip((0.35, 0.5, 0.75, 1.0), counts, strict=False)
    ],
)
def test_parameters_of_tables_1_and_2(
    network, width, count, kwargs, parameter_count
):
    backbone = network(widen_factor=width, **kwargs)
    # The classifier: Linear(1280, 1000) = 1280 * 1000 + 1000
    assert parameter_count(backbone) + 1281000 == count


@pytest.mark.parametrize('width', [0.35, 1.0, 1.4])
def test_trunk_has_the_names_and_shapes_of_mmpretrains(width):
    host = pytest.importorskip('mmpretrain.models').MobileNetV2(width)
    expected = {k: v.shape for k, v in host.state_dict().items()}
    static = AttentionMobileNetV2(width).state_dict()
    assert {k: v.shape for k, v in static.items()} == expected
    for network in (SBMobileNetV2, SEMobileNetV2):
        state = network(width).state_dict()
        common = {k: v.shape for k, v in state.items() if k in expected}
        assert common == expected
        assert all('attention' in k for k in state.keys() - expected.keys())


def test_static_network_computes_what_mmpretrains_does():
    models = pytest.importorskip('mmpretrain.models')
    torch.manual_seed(0)
    host = shake(models.MobileNetV2(0.35, out_indices=range(8)))
    host.conv2.bn.weight.data *= 8
    ours = AttentionMobileNetV2(0.35, out_indices=range(8)).eval()
    ours.load_state_dict(host.state_dict())
    with torch.no_grad():
        expected, outs = host(images()), ours(images())
    assert len(outs) == 8
    for a, b in zip(expected, outs, strict=True):
        torch.testing.assert_close(b, a)
    # The last output shows both corners of ReLU6 and what lies between.
    last = outs[-1]
    assert (last == 0).any()
    assert (last == 6).any()
    assert ((last > 0) & (last < 6)).float().mean() > 0.05


def test_the_tap_has_the_paper_s_576_channels_at_19_by_19():
    model = AttentionMobileNetV2(expand_indices=(5,)).eval()
    with torch.no_grad():
        tap, last = model(torch.randn(1, 3, 300, 300))
    assert tap.shape == (1, 576, 19, 19)
    assert last.shape == (1, 1280, 10, 10)


def test_taps_alone_can_be_asked_for():
    model = build('static', out_indices=(), expand_indices=(2, 5)).eval()
    assert [o.shape[2] for o in model(images())] == [16, 4]


def test_presets_pass_their_arguments_to_the_layers():
    model = build(
        'sb', lambda_init=0.5, gate='relu', hidden_multiplier=2, dropout=0.25
    )
    attention = model.layer2[0].conv[2].attention
    assert attention.lambda_.unique().tolist() == [0.5]
    assert attention.gate_function is torch.relu
    assert attention.gate.fc1.out_features == 2 * 8
    assert attention.gate.dropout.p == 0.25
    gate = build('se', hidden_multiplier=3, dropout=0.5)
    gate = gate.layer2[0].attention.gate
    assert (gate.fc1.out_features, gate.dropout.p) == (24, 0.5)
    conv = build('dyconv', num_kernels=2, temperature=3.0)
    conv = conv.layer2[0].conv[0].conv
    assert (conv.num_kernels, conv.temperature.item()) == (2, 3)


@pytest.mark.parametrize(
    ('network', 'kwargs', 'message'),
    [
        ('sb', dict(gate='tan'), "'tanh', 'sigmoid', 'softmax', 'relu'"),
        ('sb', dict(lambda_init=-1), r'lambda_init must be .* \[0, inf\)'),
        ('sb', dict(hidden_multiplier=0), r'hidden_multiplier .* \(0, inf'),
        ('se', dict(dropout=1), r'dropout must be a number in \[0, 1\)'),
        ('dyconv', dict(num_kernels=0), r'num_kernels .* \[1, inf\)'),
        ('dyconv', dict(temperature=-3), r'temperature .* \(0, inf\)'),
        (
            'dyconv',
            dict(attention_layers=('block',)),
            "'expand', 'depthwise', 'project', but got",
        ),
    ],
    ids=repr,
)
def test_a_preset_refuses_what_its_layer_refuses(network, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(network, **kwargs)


# ---- published weights -------------------------------------------------


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A classifier's checkpoint as mmpretrain publishes them."""
    models = pytest.importorskip('mmpretrain.models')
    torch.manual_seed(5)
    host = shake(models.MobileNetV2(0.1))
    path = tmp_path_factory.mktemp('weights') / 'mobilenet_v2.pth'
    state = {f'backbone.{k}': v for k, v in host.state_dict().items()}
    head = {'head.fc.weight': torch.zeros(4, 1280)}
    torch.save({'state_dict': {**state, **head}, 'meta': {}}, path)
    return host, str(path)


@pytest.fixture
def log():
    """Collect what goes to the current MMEngine logger."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def backbone_cfg(path, kind='SBMobileNetV2'):
    return dict(
        type=f'sb_mm.{kind}',
        widen_factor=0.1,
        init_cfg=dict(type='Pretrained', prefix='backbone.', checkpoint=path),
    )


def classifier(cfg):
    registry = pytest.importorskip('mmpretrain.registry')
    pytest.importorskip('mmpretrain.models')
    head = dict(type='mmpretrain.LinearClsHead', num_classes=4)
    model = dict(
        type='mmpretrain.ImageClassifier',
        backbone=cfg,
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(head, in_channels=1280),
    )
    return registry.MODELS.build(model)


def detector(cfg):
    registry = pytest.importorskip('mmdet.registry')
    pytest.importorskip('mmdet.models')
    model = dict(
        type='mmdet.SingleStageDetector',
        backbone=cfg,
        neck=dict(type='mmdet.FPN', in_channels=[1280], out_channels=8,
                  num_outs=1),
        bbox_head=dict(
            type='mmdet.RetinaHead', num_classes=2, in_channels=8,
            stacked_convs=1, feat_channels=8,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[4], ratios=[1], strides=[32]
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        ),
    )  # fmt: skip
    return registry.MODELS.build(model)


@pytest.mark.parametrize('host_model', [classifier, detector])
def test_published_weights_load_in_both_hosts(host_model, published, log):
    host, path = published
    model = host_model(backbone_cfg(path))
    model.init_weights()
    state = model.backbone.state_dict()
    for name, value in host.state_dict().items():
        assert state[name].equal(value), name
    # Trunk: 52 convolutions, 52 norms of 5 tensors. SB in 50 layers:
    # 2 Linear, 2 norms of 5 tensors, lambda = 13.
    message = next(m for m in log if 'loaded' in m)
    assert f'{path}: loaded 312 of 962 tensors' in message
    assert '650 attention tensors keep their start values' in message
    assert '; 0 trunk tensors were not in the file;' in message
    assert '0 tensors of the file were not used' in message
    lambda_ = model.backbone.layer1[0].conv[0].attention.lambda_
    assert lambda_.unique().tolist() == pytest.approx([0.1])


def test_static_network_with_published_weights_is_mmpretrains(published):
    host, path = published
    cfg = backbone_cfg(path, 'AttentionMobileNetV2')
    model = classifier(cfg)
    model.init_weights()
    backbone = model.backbone.eval()
    torch.testing.assert_close(backbone(images()), host(images()))


def test_dyconv_with_static_weights_is_the_static_network(published, log):
    host, path = published
    model = detector(backbone_cfg(path, 'DyConvMobileNetV2'))
    model.init_weights()
    out = model.backbone.eval()(images())[0]
    torch.testing.assert_close(out, host(images())[0], rtol=1e-4, atol=1e-4)
    # A gate of 2 Linear with bias, 2 norms of 5, and the temperature = 15.
    message = next(m for m in log if 'loaded' in m)
    assert 'loaded 312 of 1062 tensors; 750 attention tensors' in message


@pytest.mark.parametrize('prefix', ['backbone', 'backbone.'])
def test_the_prefix_may_end_in_a_dot_or_not(prefix, published):
    host, path = published
    init = dict(type='Pretrained', prefix=prefix, checkpoint=path)
    model = build('se', init_cfg=init)
    model.init_weights()
    expected = host.state_dict()['conv1.conv.weight']
    assert model.state_dict()['conv1.conv.weight'].equal(expected)


def test_what_the_file_lacks_starts_as_the_other_init_cfg_says(published):
    _, path = published
    model = build(
        'sb',
        init_cfg=[
            dict(type='Constant', val=0.5, layer='Linear'),
            dict(type='Pretrained', prefix='backbone.', checkpoint=path),
        ],
    )
    model.init_weights()
    weight = model.layer2[0].conv[0].attention.gate.fc1.weight
    assert weight.unique().tolist() == [0.5]


def test_the_caller_s_init_cfg_stays_as_it_was(published):
    cfg = backbone_cfg(published[1])
    init_cfg = dict(cfg['init_cfg'])
    classifier(cfg).init_weights()
    assert cfg['init_cfg'] == init_cfg


def test_weights_of_which_nothing_matches_are_refused(published):
    _, path = published
    model = build('sb', init_cfg=dict(type='Pretrained', checkpoint=path))
    with pytest.raises(ValueError, match='No tensor of .* prefix=None'):
        model.init_weights()


def test_weights_of_another_width_are_refused_by_name(published):
    _, path = published
    init = dict(type='Pretrained', prefix='backbone', checkpoint=path)
    model = build('sb', widen_factor=0.5, init_cfg=init)
    message = r'tensors of .*\(conv1\.conv\.weight is \(8, 3, 3, 3\) instead'
    with pytest.raises(ValueError, match=message):
        model.init_weights()


def test_a_checkpoint_of_the_attention_network_restores_all_of_it(
    tmp_path, log
):
    trained = shake(build('dyconv', temperature=7.0))
    path = str(tmp_path / 'dyconv.pth')
    torch.save(trained.state_dict(), path)
    model = build('dyconv', init_cfg=dict(type='Pretrained', checkpoint=path))
    model.init_weights()
    torch.testing.assert_close(model.eval()(images()), trained(images()))
    message = next(m for m in log if 'loaded' in m)
    assert 'loaded 1062 of 1062 tensors; 0 attention tensors' in message
