"""A network and its ONNX file give the same, whatever the batch."""

import copy
import errno
import importlib.util
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sb_mm.deploy import fold
from sb_mm.errors import UserInputError
from sb_mm.models import AttentionMobileNetV2, AttentionShuffleNetV2

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
MMDET = pytest.importorskip('mmdet.registry').MODELS
MMPRETRAIN = pytest.importorskip('mmpretrain.registry').MODELS

from mmengine.structures import InstanceData  # noqa: E402

from sb_mm.deploy import export, onnx_file, this_cpu  # noqa: E402
from sb_mm.deploy.agreement import (  # noqa: E402
    ExportFailedError,
    compare,
    disagreements,
)
from sb_mm.deploy.exportable import (  # noqa: E402
    check_model_type,
    exportable,
    wrap,
)
from sb_mm.deploy.onnx_file import add_metadata, to_onnx  # noqa: E402
from sb_mm.deploy.onnx_runner import OnnxRunner  # noqa: E402
from sb_mm.deploy.suppression import (  # noqa: E402
    SuppressingDetector,
    Suppression,
)
from sb_mm.deploy.this_cpu import for_this_cpu  # noqa: E402

SB = dict(attention=dict(type='sb_mm.ShiftBalance'))
SE = dict(attention=dict(type='sb_mm.SqueezeExcite'))
DYCONV = dict(attention_conv_cfg=dict(type='sb_mm.DynamicConv2d'))
SIDE = 48  # pixels
TEST_CFG = dict(
    nms_pre=60000,
    score_thr=0.05,
    candidates_per_class=30,
    nms=dict(type='nms', iou_threshold=0.45),
    min_bbox_size=0,
    max_per_img=4000,
)
TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'export_onnx.py'


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Two stages: exporting a network takes time a layer."""
    two = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3))
    monkeypatch.setattr(AttentionMobileNetV2, 'arch_settings', two)
    monkeypatch.setattr(AttentionMobileNetV2, 'num_stages', 3)
    monkeypatch.setattr(
        AttentionMobileNetV2, 'last_channels', staticmethod(lambda _: 24)
    )
    monkeypatch.setattr(AttentionShuffleNetV2, 'stage_blocks', (2, 1, 1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(model):
    """Norms and lambda as training leaves them, and decided scores."""
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


def classifier(name='AttentionMobileNetV2', **kwargs):
    torch.manual_seed(1)
    backbone = dict(type=f'sb_mm.{name}', widen_factor=0.5, **kwargs)
    shuffle = 'Shuffle' in name
    if not shuffle:
        backbone['out_indices'] = (2,)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MMPRETRAIN.build(
            dict(
                type='ImageClassifier',
                data_preprocessor=dict(
                    mean=[120, 110, 100], std=[60, 50, 70], to_rgb=True
                ),
                backbone=backbone,
                neck=dict(type='sb_mm.AveragePoolDropout'),
                head=dict(
                    type='LinearClsHead',
                    num_classes=5,
                    in_channels=1024 if shuffle else 24,
                ),
            )
        )
    # Neither all alike nor one certain.
    std = 0.05 if shuffle else 0.1
    nn.init.normal_(model.head.fc.weight, std=std)
    return trained(model)


def detector_config(test_cfg=TEST_CFG):
    return dict(
        type='SingleStageDetector',
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[127, 120, 110],
            std=[128, 120, 110],
            bgr_to_rgb=True,
        ),
        backbone=dict(
            type='sb_mm.SBMobileNetV2',
            widen_factor=0.5,
            expand_indices=(1,),
            out_indices=(2,),
        ),
        neck=dict(
            type='sb_mm.SSDLiteNeck',
            in_channels=(48, 24),
            out_channels=(16,),
            hidden_channels=(16,),
        ),
        bbox_head=dict(
            type='sb_mm.SSDLiteHead',
            num_classes=2,
            in_channels=(48, 24, 16),
            anchor_generator=dict(
                type='sb_mm.SSDLitePriorGenerator',
                scale_major=False,
                input_size=SIDE,
                strides=[2, 4, 8],
                min_sizes=[8, 16, 24],
                max_sizes=[16, 24, 40],
                ratios=[[2, 3]] * 3,
            ),
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder',
                target_means=[0.0] * 4,
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
        ),
        test_cfg=dict(test_cfg),
    )


def detector(test_cfg=TEST_CFG, **preprocessing):
    torch.manual_seed(1)
    config = detector_config(test_cfg)
    config['data_preprocessor'].update(preprocessing)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = trained(MMDET.build(Config(config)))
    for convs in (model.bbox_head.cls_convs, model.bbox_head.reg_convs):
        for level in convs:
            nn.init.normal_(level[-1].weight, std=1)
    return model


def folded(model):
    return exportable(fold(copy.deepcopy(model)), (SIDE, SIDE))


def random_images(number, seed=2):
    torch.manual_seed(seed)
    # Blocks of colour, as noise looks the same everywhere.
    coarse = torch.rand(number, 3, 6, 6) * 255
    return nn.functional.interpolate(coarse, size=(SIDE, SIDE))


def runner(file, path, test_cfg=TEST_CFG):
    add_metadata(file, sb_mm='0', test_cfg=test_cfg)
    onnx.save(file, str(path))
    return OnnxRunner(path, threads=1)


@pytest.mark.parametrize(
    ('name', 'kwargs'),
    [
        ('AttentionMobileNetV2', SB),
        ('AttentionMobileNetV2', DYCONV),
        ('AttentionShuffleNetV2', SE),
    ],
)
@torch.no_grad()
def test_one_classifier_file_takes_every_batch_size(name, kwargs, tmp_path):
    model = classifier(name, **kwargs)
    file = runner(
        to_onnx(folded(model), random_images(2), dynamic=True),
        tmp_path / 'a.onnx',
    )
    for number in (1, 2, 3):
        images = random_images(number, seed=number)
        batch = dict(
            inputs=list(images),
            data_samples=[_sample() for _ in range(number)],
        )
        expected = model.test_step(copy.deepcopy(batch))
        samples = file.predict(batch)
        for a, b in zip(samples, expected, strict=True):
            torch.testing.assert_close(
                a.pred_score, b.pred_score, rtol=0, atol=1e-5
            )
            assert a.pred_label == b.pred_label
        assert 0.3 < expected[0].pred_score.max() < 0.999


def _sample():
    from mmpretrain.structures import DataSample

    return DataSample()


def _image_sample():
    from mmdet.structures import DetDataSample

    return DetDataSample(
        metainfo=dict(
            img_shape=(SIDE, SIDE),
            ori_shape=(2 * SIDE, SIDE // 2),
            scale_factor=(2.0, 0.5),
        )
    )


def detections(sample):
    """Rows of label, score and box, in an order of their own."""
    found = sample.pred_instances
    rows = torch.cat(
        [found.labels[:, None], found.scores[:, None], found.bboxes], 1
    ).tolist()
    return np.array(sorted(rows, key=lambda r: [round(v, 3) for v in r]))


@pytest.fixture(scope='module')
def shared(request):
    """Files of the tests below: an export takes seconds."""
    return {}


def detector_file(shared, kind):
    if kind not in shared:
        module = folded(detector())
        module = SuppressingDetector(module) if 'nms' in kind else module
        one = 'cpu' in kind
        file = to_onnx(module, random_images(1 if one else 2), dynamic=not one)
        shared[kind] = for_this_cpu(file) if one else file
    return shared[kind]


@pytest.mark.parametrize('kind', ['raw', 'nms', 'raw cpu', 'nms cpu'])
@torch.no_grad()
def test_a_detector_file_finds_what_the_detector_finds(kind, shared, tmp_path):
    model = detector()
    file = runner(detector_file(shared, kind), tmp_path / 'a.onnx')
    for number in (1, 3):
        batch = dict(
            inputs=list(random_images(number, seed=number)),
            data_samples=[_image_sample() for _ in range(number)],
        )
        expected = model.test_step(copy.deepcopy(batch))
        samples = file.predict(batch)
        for a, b in zip(samples, expected, strict=True):
            found, wanted = detections(a), detections(b)
            assert len(wanted) > 10
            np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3)


@torch.no_grad()
def test_a_raw_file_gives_boxes_and_scores_of_all_priors(shared, tmp_path):
    file = runner(detector_file(shared, 'raw'), tmp_path / 'a.onnx')
    images = random_images(2)
    boxes, scores = wrap(detector(), (SIDE, SIDE))(images)
    out = file.run(images)
    priors = 6 * (24**2 + 12**2 + 6**2)
    assert out['boxes'].shape == (2, priors, 4)
    assert file.batch == 'batch'
    torch.testing.assert_close(out['boxes'], boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(out['scores'], scores, rtol=0, atol=1e-5)


@torch.no_grad()
def test_at_most_max_per_img_are_kept(shared, tmp_path):
    few = dict(TEST_CFG, max_per_img=4)
    file = runner(detector_file(shared, 'nms'), tmp_path / 'a.onnx', few)
    images = list(random_images(1))
    (sample,) = file.predict(
        dict(inputs=images, data_samples=[_image_sample()])
    )
    (wanted,) = detector(few).test_step(
        dict(inputs=images, data_samples=[_image_sample()])
    )
    np.testing.assert_allclose(
        detections(sample), detections(wanted), rtol=0, atol=2e-3
    )
    assert len(sample.pred_instances) == 4


@torch.no_grad()
def test_a_file_pads_as_the_preprocessor_does(tmp_path):
    model = detector(pad_size_divisor=32, pad_value=3)
    module = exportable(model, (SIDE, SIDE))
    # Priors of 64 pixels, boxes within 48.
    assert len(module.priors) == 6 * (32**2 + 16**2 + 8**2)
    file = runner(
        to_onnx(module, random_images(2), dynamic=True), tmp_path / 'a.onnx'
    )
    batch = detector_batch(2)
    lines = list(compare(file, wrap(model, (SIDE, SIDE)), model, [batch]))
    assert lines[-1].startswith('detections of the file or of test_step')
    assert lines[-1].endswith(': 0')


def detector_batch(number):
    return dict(
        inputs=list(random_images(number)),
        data_samples=[_image_sample() for _ in range(number)],
    )


@pytest.mark.parametrize('wrong', ['decoded', 'suppressed', 'not a number'])
def test_a_file_that_computes_something_else_is_found(
    wrong, shared, tmp_path, monkeypatch
):
    model = detector()
    reference = wrap(model, (SIDE, SIDE))
    kind = 'nms' if wrong == 'suppressed' else 'raw'
    file = runner(detector_file(shared, kind), tmp_path / 'a.onnx')
    if wrong == 'decoded':
        # By the network, while file and wrapper agree.
        model = detector()
        model.bbox_head.bbox_coder.stds = (0.1, 0.1, 0.3, 0.3)
        message = 'the other lacks'
    elif wrong == 'suppressed':
        model.bbox_head.test_cfg['nms'] = dict(type='nms', iou_threshold=0.9)
        message = 'the other lacks'
    else:
        run = file.run
        outputs = dict(boxes=torch.nan)
        monkeypatch.setattr(
            file,
            'run',
            lambda x: {k: v * outputs.get(k, 1) for k, v in run(x).items()},
        )
        message = 'boxes from PyTorch, batches of 2: nan pixels, but at most'
    with pytest.raises(ExportFailedError, match=message):
        list(compare(file, reference, model, [detector_batch(2)]))


def test_a_file_that_overlooks_a_class_is_found(shared, tmp_path, monkeypatch):
    model = detector()
    file = runner(detector_file(shared, 'nms'), tmp_path / 'a.onnx')
    run = file.run

    def without_a_class(images):
        outputs = run(images)
        kept = outputs['label'] != 1
        return {name: value[kept] for name, value in outputs.items()}

    reference = wrap(model, (SIDE, SIDE))
    batches = [detector_batch(1)]
    assert list(compare(file, reference, model, batches))[-1].endswith(': 0')
    monkeypatch.setattr(file, 'run', without_a_class)
    with pytest.raises(ExportFailedError, match=r'the other lacks.*: [1-9]'):
        list(compare(file, reference, model, batches))


def test_a_network_whose_outputs_are_not_finite_is_refused(shared, tmp_path):
    model = detector()
    nn.init.constant_(model.bbox_head.cls_convs[0][-1].bias, torch.nan)
    file = runner(detector_file(shared, 'raw'), tmp_path / 'a.onnx')
    with pytest.raises(ExportFailedError, match='scores of the network'):
        list(
            compare(
                file, wrap(model, (SIDE, SIDE)), model, [detector_batch(1)]
            )
        )


def found(*rows):
    """Detections of (label, score, x1, y1, x2, y2)."""
    rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return InstanceData(
        labels=rows[:, 0].long(), scores=rows[:, 1], bboxes=rows[:, 2:]
    )


BOX = (0.0, 0.0, 100.0, 100.0)
# Overlaps BOX by 0.4502, at the threshold of 0.45, and by less.
AT = (0.0, 0.0, 100.0, 45.02)
LESS = (0.0, 0.0, 100.0, 40.0)


@pytest.mark.parametrize(
    ('mine', 'others', 'count'),
    [
        ([(0, 0.9, *BOX)], [(0, 0.9002, 0.02, 0, 100, 100)], 0),
        ([(0, 0.9, *BOX)], [(0, 0.9, 0.1, 0, 100, 100)], 2),
        ([(0, 0.9, *BOX)], [(0, 0.901, *BOX)], 2),
        ([(0, 0.9, *BOX)], [(1, 0.9, *BOX)], 2),
        ([(0, 0.9, *BOX)], [], 1),
        ([], [], 0),
        # At the score's threshold; at the last candidate's score.
        ([(0, 0.0502, *BOX)], [], 0),
        ([(1, 0.3001, *BOX)], [], 0),
        ([(0, 0.3001, *BOX)], [], 1),
        # Suppressed by one and not by the other, at the overlap.
        ([(0, 0.9, *BOX), (0, 0.8, *AT)], [(0, 0.9, *BOX)], 0),
        ([(0, 0.9, *BOX), (1, 0.8, *AT)], [(0, 0.9, *BOX)], 1),
        ([(0, 0.9, *BOX), (0, 0.8, *LESS)], [(0, 0.9, *BOX)], 1),
        # And what that one would have suppressed.
        (
            [(0, 0.9, *BOX), (0, 0.8, *AT)],
            [(0, 0.9, *BOX), (0, 0.7, 0, 0, 100, 30)],
            0,
        ),
    ],
)
def test_what_rounding_does_not_decide_is_counted(mine, others, count):
    floors = torch.tensor([0.01, 0.3])
    for a, b in ((mine, others), (others, mine)):
        number = disagreements(found(*a), found(*b), floors, TEST_CFG)
        assert number == count


def test_rounding_decides_which_is_the_last_of_an_image():
    cfg = dict(TEST_CFG, max_per_img=2)
    far = (200.0, 0.0, 220.0, 20.0)
    mine = found((0, 0.9, *BOX), (0, 0.4, *far))
    others = found((0, 0.9, *BOX), (1, 0.4003, *far))
    floors = torch.zeros(2)
    assert disagreements(mine, others, floors, cfg) == 0
    assert disagreements(mine, others, floors, TEST_CFG) == 2


def test_on_this_cpu_the_shift_leaves_the_features_in_their_layout(shared):
    graph = detector_file(shared, 'raw cpu').graph
    constants = {t.name for t in graph.initializer}
    convs = [n for n in graph.node if n.op_type == 'Conv']
    computed = [n for n in convs if not constants.issuperset(n.input[2:3])]
    if not any(n.domain.endswith('nchwc') for n in graph.node):
        pytest.skip('ONNX Runtime has no blocked layout on this CPU')
    # Two stages of attention: 2 + 3 + 3 convolutions.
    assert len(computed) == 8
    assert all(n.domain.endswith('nchwc') for n in computed)
    # Each of them with an activation clips its own output.
    clips = [n for n in computed if any(_clips(a) for a in n.attribute)]
    assert len(clips) == 5
    assert not [t.name for t in graph.initializer if 'held' in t.name]


def test_a_version_that_lays_out_otherwise_is_named(monkeypatch):
    def without_a_bias(model, optimised=this_cpu._optimised):
        model = optimised(model)
        convs = [n for n in model.graph.node if n.op_type.endswith('Conv')]
        convs[1].input.pop()
        return model

    monkeypatch.setattr(this_cpu, '_optimised', without_a_bias)
    file = to_onnx(folded(detector()), random_images(1), dynamic=False)
    with pytest.raises(UserInputError, match='leave --this-cpu out'):
        for_this_cpu(file)


class Means(nn.Module):
    output_names = ('a', 'b', 'c')

    def forward(self, x):
        kept, not_kept = x.mean((2, 3), keepdim=True), x.mean((2, 3))
        over_rows = x.mean(2)
        return (x - kept).abs().mean(1), not_kept, over_rows


def test_on_this_cpu_every_mean_keeps_its_shape():
    import onnxruntime

    x = torch.rand(1, 3, 4, 5)
    file = for_this_cpu(to_onnx(Means(), x, dynamic=False))
    session = onnxruntime.InferenceSession(
        file.SerializeToString(), providers=['CPUExecutionProvider']
    )
    found = session.run(None, dict(images=x.numpy()))
    for value, expected in zip(found, Means()(x), strict=True):
        np.testing.assert_allclose(value, expected.numpy(), rtol=1e-5)


def _clips(attribute):
    return attribute.name == 'activation' and attribute.s == b'Clip'


def test_suppression_takes_the_best_candidates_and_drops_thin_boxes():
    boxes = torch.tensor(
        [[[0, 0, 9, 9], [1, 0, 10, 9], [5, 5, 5, 20], [30, 0, 40, 9.0]]]
    )
    scores = torch.tensor([[[0.9], [0.8], [0.7], [0.6]]])
    cfg = dict(TEST_CFG, candidates_per_class=3)
    image, label, box, score = Suppression(cfg, 4, 1, (9, 8))(boxes, scores)
    # The second overlaps, the third has no width, the fourth is no candidate.
    assert (image.tolist(), label.tolist()) == ([0], [0])
    # Clipped to 8 by 9 pixels.
    assert box.tolist() == [[0, 0, 8, 9]]
    assert score.tolist() == [pytest.approx(0.9)]
    every = Suppression(dict(TEST_CFG), 4, 1, (9, 8))(boxes, scores)
    assert every[3].tolist() == [pytest.approx(0.9), pytest.approx(0.6)]


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (dict(nms=dict(type='soft_nms', iou_threshold=0.5)), 'soft_nms'),
        (dict(nms=dict(iou_threshold=0.5, class_agnostic=True)), 'agnostic'),
        (dict(nms_pre=100), 'nms_pre=100'),
    ],
)
def test_what_suppression_cannot_do_is_refused(setting, message):
    with pytest.raises(UserInputError, match=message):
        Suppression({**TEST_CFG, **setting}, 1000, 2, (9, 9))


class Singular(nn.Module):
    def forward(self, x):
        return x * torch.linalg.svdvals(x.flatten(1)).sum()


def test_a_layer_without_an_onnx_form_is_named():
    net = nn.Sequential(nn.Sequential(nn.ReLU(), Singular()), nn.ReLU())
    message = r'layer 0\.1 \(Singular\) cannot be exported'
    with pytest.raises(UserInputError, match=message):
        to_onnx(net.eval(), torch.rand(2, 3, 4, 4), dynamic=False)


class Pair(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.inner = layer

    def forward(self, x):
        return self.inner(x, x * 2)


class SingularOfTwo(nn.Module):
    def forward(self, x, y):
        return x * torch.linalg.svdvals(y.flatten(1)).sum()


class SizeOfBatch(nn.Module):
    def forward(self, x):
        return x * 2 if len(x) == 2 else x


@pytest.mark.parametrize('layer', [SingularOfTwo, SizeOfBatch])
def test_a_layer_of_two_inputs_or_of_one_batch_size_is_named(layer):
    inner = layer()
    inner = Pair(inner) if layer is SingularOfTwo else inner
    where = r'0\.inner' if layer is SingularOfTwo else '0'
    net = nn.Sequential(inner, nn.ReLU()).eval()
    message = rf'layer {where} \({layer.__name__}\) cannot be exported'
    with pytest.raises(UserInputError, match=message):
        to_onnx(net, torch.rand(2, 3, 4, 4), dynamic=True)


def test_a_head_that_says_more_of_a_prior_is_refused():
    config = detector_config()
    config['neck'] = dict(
        type='FPN', in_channels=[48, 24], out_channels=32, num_outs=3
    )
    config['bbox_head'] = dict(
        type='ATSSHead',
        num_classes=2,
        in_channels=32,
        feat_channels=32,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[2, 4, 8],
        ),
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MMDET.build(Config(config)).eval()
    with pytest.raises(UserInputError, match='ATSSHead cannot be exported'):
        wrap(model, (SIDE, SIDE))


def test_a_network_of_another_kind_is_refused():
    with pytest.raises(UserInputError, match='AttentionMobileNetV2 cannot'):
        check_model_type(AttentionMobileNetV2(out_indices=(2,)))


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(
        onnx_file, 'find_spec', lambda n: None if n == 'onnxruntime' else n
    )
    with pytest.raises(UserInputError, match='needs onnxruntime: install'):
        onnx_file.require_packages()


def test_a_pytorch_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(torch.onnx, 'export', lambda model, args: None)
    with pytest.raises(UserInputError, match='needs PyTorch 2.6 or later'):
        onnx_file.require_packages()


def test_a_file_of_others_is_refused(tmp_path):
    path = tmp_path / 'a.onnx'
    path.write_bytes(b'no network')
    with pytest.raises(UserInputError, match='cannot be loaded'):
        OnnxRunner(path)
    foreign = to_onnx(nn.ReLU(), torch.rand(2, 3), dynamic=False)
    onnx.save(foreign, str(path))
    with pytest.raises(UserInputError, match='was not written by'):
        OnnxRunner(path)


@pytest.fixture
def config(tiny_devkit, tmp_path):
    root = tiny_devkit(lists={'test': ['a', 'b', 'c', 'd']})
    size = (SIDE, SIDE)
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=size, keep_ratio=False),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs', meta_keys=keys),
    ]
    dataset = dict(
        type='sb_mm.VOCDevkitDataset',
        data_root=str(root),
        data_prefix=dict(sub_data_root=''),
        ann_file='ImageSets/Main/test.txt',
        metainfo=dict(classes=('square', 'disc')),
        test_mode=True,
        pipeline=pipeline,
    )
    cfg = Config(
        dict(
            default_scope='mmdet',
            model=detector_config(),
            test_dataloader=dict(
                batch_size=2,
                num_workers=2,
                persistent_workers=True,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dataset,
            ),
            test_evaluator=dict(type='sb_mm.PascalVOCMetric'),
        )
    )
    path = tmp_path / 'config.py'
    cfg.dump(path)
    return path


@pytest.fixture
def tool(monkeypatch, capsys, tmp_path):
    """Run the tool as the shell would; return exit code, output, errors."""
    from sb_mm.engine.cli import run_tool

    spec = importlib.util.spec_from_file_location('tool_export', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def run(*argv):
        words = [str(word) for word in argv]
        monkeypatch.setattr('sys.argv', ['export_onnx.py', *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_tool(module.main)
        captured = capsys.readouterr()
        code = stop.value.code
        return code, captured.out, f'{captured.err}{code}'

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=detector().state_dict()), path)
    return path


def test_the_tool_exports_checks_and_evaluates(
    tool, config, checkpoint, tmp_path
):
    out = tmp_path / 'net.onnx'
    code, printed, error = tool(
        config, checkpoint, '--out', out, '--nms', '--evaluate'
    )
    assert code == 0, error
    assert 'largest difference of scores' in printed
    assert 'largest difference of boxes' in printed
    assert 'batches of 1 and 2' in printed
    shown = dict(
        line.split(': ') for line in printed.splitlines() if 'mAP_' in line
    )
    assert shown['PyTorch'] == shown['ONNX Runtime']
    texts = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert texts['classes'] == '["square", "disc"]'
    assert texts['mean'] == '[127.0, 120.0, 110.0]'
    assert texts['channels'] == '"BGR"'
    assert not list(tmp_path.glob('.net.onnx*'))


def test_without_a_checkpoint_the_weights_are_random(tool, config, tmp_path):
    code, printed, error = tool(config, '--check-images', 1)
    assert code == 0, error
    # Nothing of what MMEngine logs of each of them.
    assert printed.startswith('no checkpoint given: the weights are random')
    assert 'init_weights' not in error
    assert onnx.load(tmp_path / 'config.onnx').graph.node


def test_a_file_that_differs_is_not_left(
    tool, config, shared, tmp_path, monkeypatch
):
    out = tmp_path / 'net.onnx'
    out.write_text('an earlier one')
    other = detector()
    nn.init.constant_(other.bbox_head.cls_convs[1][-1].bias, 0.5)
    torch.save(dict(state_dict=other.state_dict()), 'other.pth')
    file = detector_file(shared, 'raw')
    monkeypatch.setattr(export, 'to_onnx', lambda *_, **__: file)
    code, _, error = tool(config, 'other.pth', '--out', out)
    assert code not in (0, 2)
    assert 'at most 0.0005 is rounding; no file was written' in error
    assert out.read_text() == 'an earlier one'
    assert not list(tmp_path.glob('.net.onnx*'))


@pytest.fixture
def exported(shared, monkeypatch):
    """Without the seconds of an export."""
    file = detector_file(shared, 'raw')
    monkeypatch.setattr(export, 'to_onnx', lambda *_, **__: file)


def test_ended_by_a_signal_nothing_is_left(
    tool, config, checkpoint, exported, tmp_path, monkeypatch
):
    def end(draft, *_):
        assert draft.exists()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(export, '_compare', end)
    code, _, _ = tool(config, checkpoint, '--out', 'net.onnx')
    assert code == 128 + signal.SIGTERM
    assert not list(tmp_path.glob('*net.onnx*'))


def test_a_worker_of_a_pool_still_ends_at_once(tool, config, exported):
    def state():
        return signal.getsignal(signal.SIGTERM)

    tool(config, '--check-images', 0)
    assert state() is not signal.SIG_DFL
    child = os.fork()
    if child == 0:
        os._exit(0 if state() is signal.SIG_DFL else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_full_disk_is_named(
    tool, config, checkpoint, exported, tmp_path, monkeypatch
):
    def save(file, path):
        Path(path).write_text('half')
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(onnx, 'save', save)
    code, _, error = tool(config, checkpoint, '--out', 'net.onnx')
    assert code == 2
    assert 'net.onnx cannot be written' in error
    assert 'No space left' in error
    assert not list(tmp_path.glob('*net.onnx*'))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['test_evaluator=None'], 'no test_evaluator'),
        (['model.test_cfg.nms_pre=10'], 'nms_pre=10 keeps only some'),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_before_the_export(
    tool, config, options, message, monkeypatch
):
    monkeypatch.setattr(export, 'to_onnx', None)
    argv = (config, '--evaluate', '--cfg-options', *options)
    code, _, error = tool(*argv)
    assert code == 2
    assert message in error


def test_raw_outputs_are_exported_whatever_follows_them(
    tool, config, checkpoint, exported
):
    code, printed, error = tool(
        config, checkpoint, '--cfg-options', 'model.test_cfg.nms_pre=10'
    )
    assert code == 0, error
    assert 'detections not compared with test_step' in printed


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (('--out', 'nowhere/net.onnx'), 'nowhere does not exist'),
        (('--out', 'net.pth'), 'must be a file name in .onnx'),
        (('missing.pth',), 'missing.pth'),
        (('--check-images', '0'), '--check-images must be'),
        (('--data-root', 'elsewhere'), 'elsewhere'),
    ],
)
def test_bad_input_is_refused_before_the_export(
    tool, config, argv, message, monkeypatch
):
    monkeypatch.setattr(export, 'to_onnx', None)
    code, _, error = tool(config, *argv)
    assert code == 2
    assert message in error
