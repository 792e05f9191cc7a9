"""A network and its ONNX file give the same, whatever the batch."""

import copy
import importlib.util
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
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

from sb_mm.deploy import export, this_cpu  # noqa: E402
from sb_mm.deploy.agreement import (  # noqa: E402
    ExportFailedError,
    compare,
    unexplained,
)
from sb_mm.deploy.nms import SuppressingDetector, Suppression  # noqa: E402
from sb_mm.deploy.onnx import (  # noqa: E402
    exportable,
    require_packages,
    to_onnx,
    wrap,
    wrapper_of,
)
from sb_mm.deploy.onnx_runner import OnnxRunner  # noqa: E402
from sb_mm.deploy.this_cpu import for_this_cpu  # noqa: E402

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


def runner(file, test_cfg=TEST_CFG):
    helper = onnx.helper
    helper.set_model_props(
        file, dict(sb_mm='0', test_cfg=json.dumps(test_cfg))
    )
    return OnnxRunner(file.SerializeToString(), threads=1)


def image_batch(number, sample, seed=2):
    images = list(random_images(number, seed))
    return dict(inputs=images, data_samples=[sample() for _ in images])


def class_sample():
    from mmpretrain.structures import DataSample

    return DataSample()


def image_sample():
    from mmdet.structures import DetDataSample

    return DetDataSample(
        metainfo=dict(
            img_shape=(SIDE, SIDE),
            ori_shape=(2 * SIDE, SIDE // 2),
            scale_factor=(2.0, 0.5),
        )
    )


@pytest.mark.parametrize(
    ('name', 'kwargs'),
    [('AttentionMobileNetV2', DYCONV), ('AttentionShuffleNetV2', SE)],
)
@torch.no_grad()
def test_one_classifier_file_takes_every_batch_size(name, kwargs):
    model = classifier(name, **kwargs)
    file = runner(to_onnx(folded(model), random_images(2), dynamic=True))
    batches = [image_batch(n, class_sample, seed=n) for n in (1, 2, 3)]
    for batch in batches:
        expected = model.test_step(copy.deepcopy(batch))
        for a, b in zip(file.predict(batch), expected, strict=True):
            torch.testing.assert_close(
                a.pred_score, b.pred_score, rtol=0, atol=1e-5
            )
            assert a.pred_label == b.pred_label
        assert 0.3 < expected[0].pred_score.max() < 0.999
    reference = wrap(model, (SIDE, SIDE))
    assert (
        'scores of test_step'
        in list(compare(file, reference, model, batches))[-1]
    )
    with pytest.raises(ExportFailedError, match='The scores differ'):
        list(
            compare(file, wrap(classifier(name), (SIDE, SIDE)), model, batches)
        )
    model.head.fc.bias.data[0] += 0.1
    with pytest.raises(ExportFailedError, match='The scores differ'):
        list(compare(file, reference, model, batches))


@pytest.fixture(scope='module')
def shared():
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


def detections(sample):
    """Rows of label, score and box, in an order of their own."""
    found = sample.pred_instances
    rows = torch.cat(
        [found.labels[:, None], found.scores[:, None], found.bboxes], 1
    ).tolist()
    return np.array(sorted(rows, key=lambda r: [round(v, 3) for v in r]))


@pytest.mark.parametrize('kind', ['raw', 'nms', 'nms cpu'])
@pytest.mark.parametrize('most', [4000, 4])
@torch.no_grad()
def test_a_detector_file_finds_what_the_detector_finds(kind, most, shared):
    cfg = dict(TEST_CFG, max_per_img=most)
    model = detector(cfg)
    file = runner(detector_file(shared, kind), cfg)
    for number in (1, 3):
        batch = image_batch(number, image_sample, seed=number)
        expected = model.test_step(copy.deepcopy(batch))
        for a, b in zip(file.predict(batch), expected, strict=True):
            found, wanted = detections(a), detections(b)
            assert len(wanted) == 4 if most == 4 else len(wanted) > 10
            np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3)


@torch.no_grad()
def test_the_exported_form_pads_as_the_preprocessor_does():
    model = detector(pad_size_divisor=32, pad_value=3)
    form = wrap(model, (SIDE, SIDE))
    # Priors of 64 pixels, boxes within 48.
    assert len(form.priors) == 6 * (32**2 + 16**2 + 8**2)
    batch = image_batch(1, image_sample)
    boxes, scores = form(torch.stack(batch['inputs']))
    (sample,) = model.test_step(batch)
    assert unexplained(sample, boxes[0], scores[0], model.bbox_head) == 0


def change(**values):
    return lambda outputs: {
        name: values.get(name, lambda v: v)(value)
        for name, value in outputs.items()
    }


def every_tenth_missing(outputs):
    kept = torch.arange(len(outputs['score'])) % 10 != 0
    return {name: value[kept] for name, value in outputs.items()}


FAULTS = {
    'raw, a pixel off': change(boxes=lambda v: v + 1),
    'raw, swapped classes': change(scores=lambda v: v.flip(-1)),
    'raw, no number': change(boxes=lambda v: v * torch.nan),
    'nms, a pixel off': change(box=lambda v: v + 1),
    'nms, swapped classes': change(label=lambda v: 1 - v),
    'nms, no number': change(score=lambda v: v * torch.nan),
    'nms, no number as a box': change(box=lambda v: v * torch.nan),
    'nms, some missing': every_tenth_missing,
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_file_that_computes_something_else_is_refused(
    fault, shared, monkeypatch
):
    model = detector()
    file = runner(detector_file(shared, fault.split(',')[0]))
    arguments = (file, wrap(model, (SIDE, SIDE)), model)
    assert file.batch == 'batch'
    batches = [image_batch(n, image_sample) for n in (1, 2)]
    assert list(compare(*arguments, batches))[-1].startswith('0 of')
    run = file.run
    monkeypatch.setattr(file, 'run', lambda x: FAULTS[fault](run(x)))
    with pytest.raises(ExportFailedError, match=r'differ from|do not follow'):
        list(compare(*arguments, batches))


def other_weights(model):
    nn.init.normal_(model.bbox_head.cls_convs[0][-1].weight)


def other_overlap(model):
    model.bbox_head.test_cfg['nms'] = dict(type='nms', iou_threshold=0.3)


def no_number(model):
    nn.init.constant_(model.bbox_head.cls_convs[0][-1].bias, torch.nan)


@pytest.mark.parametrize('kind', ['raw', 'nms'])
@pytest.mark.parametrize('alter', [other_weights, other_overlap, no_number])
def test_a_file_of_another_network_is_refused(alter, kind, shared):
    model = detector()
    alter(model)
    file = runner(detector_file(shared, kind))
    batches = [image_batch(2, image_sample)]
    message = 'itself' if alter is no_number else 'differ|do not follow'
    with pytest.raises(ExportFailedError, match=message):
        list(compare(file, wrap(model, (SIDE, SIDE)), model, batches))


def test_a_network_that_finds_nothing_is_no_fault(shared, monkeypatch):
    cfg = dict(TEST_CFG, score_thr=1.1)
    file, model = runner(detector_file(shared, 'raw'), cfg), detector(cfg)
    reference = wrap(model, (SIDE, SIDE))
    batches = [image_batch(2, image_sample)]
    lines = list(compare(file, reference, model, batches))
    assert lines[-1].startswith('0 of 0 detections')
    # Then boxes and scores alone tell.
    run = file.run
    monkeypatch.setattr(
        file, 'run', lambda x: FAULTS['raw, a pixel off'](run(x))
    )
    with pytest.raises(ExportFailedError, match='The boxes differ from'):
        list(compare(file, reference, model, batches))


def test_an_exported_form_that_decodes_otherwise_is_refused(shared):
    file, model = runner(detector_file(shared, 'raw')), detector()
    reference = wrap(detector(), (SIDE, SIDE))
    # By the network, while file and exported form agree.
    model.bbox_head.bbox_coder.stds = (0.1, 0.1, 0.3, 0.3)
    with pytest.raises(ExportFailedError, match='do not follow'):
        list(compare(file, reference, model, [image_batch(2, image_sample)]))


@pytest.mark.parametrize('candidates', [None, 1000])
@torch.no_grad()
def test_ties_of_a_young_network_are_no_fault(candidates):
    cfg = dict(TEST_CFG, candidates_per_class=candidates)
    model = detector(cfg)
    for conv in model.bbox_head.cls_convs:
        nn.init.normal_(conv[-1].weight, std=1e-5)
    batch = image_batch(1, image_sample)
    boxes, scores = wrap(model, (SIDE, SIDE))(torch.stack(batch['inputs']))
    (wanted,) = model.test_step(copy.deepcopy(batch))
    head, (sample,) = model.bbox_head, batch['data_samples']
    rounded = scores + 1e-6 * torch.randn_like(scores)
    suppression = Suppression(cfg, boxes.size(1), 2, (SIDE, SIDE))
    _, labels, bboxes, found = suppression(boxes, rounded)

    def count(kept):
        scale = torch.tensor(sample.scale_factor).repeat(2)
        sample.pred_instances = InstanceData(
            bboxes=bboxes[kept] / scale,
            labels=labels[kept],
            scores=found[kept],
        )
        return unexplained(sample, boxes[0], scores[0], head)

    every = torch.arange(len(labels))
    assert count(every) == 0
    # Other boxes than those of test_step, hundreds of them.
    a, b = detections(sample)[:, 2:], detections(wanted)[:, 2:]
    assert (abs(a[:, None] - b).max(-1).min(1) > 1).sum() > 100
    if candidates is None:  # else each may be the last
        missing = every[every % 10 != 0]
        assert count(missing) >= len(every) - len(missing)


def test_on_this_cpu_the_shift_leaves_the_features_in_their_layout(shared):
    graph = detector_file(shared, 'nms cpu').graph
    constants = {t.name for t in graph.initializer}
    convs = [n for n in graph.node if n.op_type == 'Conv']
    computed = [n for n in convs if not constants.issuperset(n.input[2:3])]
    if not any(n.domain.endswith('nchwc') for n in graph.node):
        pytest.skip('ONNX Runtime has no blocked layout on this CPU')
    # Two stages of attention: 2 + 3 + 3 convolutions.
    assert len(computed) == 8
    assert all(n.domain.endswith('nchwc') for n in computed)
    # Each of them with an activation clips its own output.
    clips = [a.s for n in computed for a in n.attribute if a.s == b'Clip']
    assert len(clips) == 5
    assert not [t.name for t in graph.initializer if 'held' in t.name]


class Shifted(nn.Module):
    output_names = ('a', 'b', 'c', 'd')

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        kept, not_kept = x.mean((2, 3), keepdim=True), x.mean((2, 3))
        bias = torch.cat([not_kept, not_kept], 1)[0, :5]
        shifted = self.conv._conv_forward(x, self.conv.weight, bias)
        return (x - kept).abs().mean(1), not_kept, x.mean(2), shifted


def test_on_this_cpu_means_and_biases_stay_what_they_are(monkeypatch):
    import onnxruntime

    net, x = Shifted().eval(), torch.rand(1, 3, 4, 5)
    plain = to_onnx(net, x, dynamic=False)
    session = onnxruntime.InferenceSession(
        for_this_cpu(plain).SerializeToString(),
        providers=['CPUExecutionProvider'],
    )
    found = session.run(None, dict(images=x.numpy()))
    for value, expected in zip(found, net(x), strict=True):
        np.testing.assert_allclose(value, expected.detach(), rtol=1e-5)

    # A version that lays out otherwise.
    def without_a_bias(model, laid_out=this_cpu._laid_out):
        model = laid_out(model)
        conv = next(n for n in model.graph if n.op_type.endswith('Conv'))
        conv.resize_inputs(2)
        return model

    monkeypatch.setattr(this_cpu, '_laid_out', without_a_bias)
    with pytest.raises(UserInputError, match='leave --this-cpu out'):
        for_this_cpu(plain)


def test_suppression_takes_the_best_candidates_and_drops_thin_boxes():
    boxes = torch.tensor(
        [[[-9, 0, 9, 9], [-8, 0, 10, 9], [5, 5, 5, 20], [30, 0, 40, 9.0]]]
    )
    scores = torch.tensor([[[0.9], [0.8], [0.7], [0.6]]])

    def suppressed(**cfg):
        suppression = Suppression({**TEST_CFG, **cfg}, 4, 1, (SIDE, SIDE))
        return [v.tolist() for v in suppression(boxes, scores)]

    # The second overlaps, the third has no width, the fourth is no candidate.
    image, label, box, score = suppressed(candidates_per_class=3)
    assert (image, label, box) == ([0], [0], [[0, 0, 9, 9]])
    assert score == pytest.approx([0.9])
    assert suppressed()[3] == pytest.approx([0.9, 0.6])


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
        Suppression({**TEST_CFG, **setting}, 1000, 2, (SIDE, SIDE))


class Singular(nn.Module):
    output_names = ('y',)

    def forward(self, x):
        return x * torch.linalg.svdvals(x.flatten(1)).sum()


def test_an_operation_without_an_onnx_form_is_named():
    with pytest.raises(UserInputError, match=r'cannot be.*_linalg_svd'):
        to_onnx(Singular().eval(), torch.rand(2, 3, 4, 4), dynamic=False)


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
        wrapper_of(AttentionMobileNetV2(out_indices=(2,)))


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(
        'sb_mm.deploy.onnx.find_spec', lambda n: n != 'onnxruntime' or None
    )
    with pytest.raises(UserInputError, match='runtime: pip install'):
        require_packages()


def test_a_pytorch_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(torch.onnx, 'export', lambda model, args: None)
    with pytest.raises(UserInputError, match='needs PyTorch 2.6 or later'):
        require_packages()


def test_a_file_of_others_is_refused(shared, tmp_path):
    path = tmp_path / 'a.onnx'
    path.write_bytes(b'no network')
    with pytest.raises(UserInputError, match='cannot be loaded'):
        OnnxRunner(path)
    foreign = copy.deepcopy(detector_file(shared, 'raw'))
    del foreign.metadata_props[:]
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
    assert "images ['batch', 3, 48, 48] tensor(float)" in printed
    assert '0 of ' in printed
    shown = dict(
        line.split(': ') for line in printed.splitlines() if 'mAP_' in line
    )
    assert shown['PyTorch'] == shown['ONNX Runtime']
    texts = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert texts['classes'] == '["square", "disc"]'
    assert texts['mean'] == '[127.0, 120.0, 110.0]'
    assert texts['channels'] == '"BGR"'
    assert OnnxRunner(out).test_cfg == TEST_CFG


def test_without_a_checkpoint_the_weights_are_random(tool, config, tmp_path):
    code, printed, error = tool(config, '--check-images', 1)
    assert code == 0, error
    # Nothing of what MMEngine logs of each of them.
    assert 'no checkpoint given: the weights are random' in printed
    assert 'largest difference of boxes' in printed
    assert 'init_weights' not in error
    assert onnx.load(tmp_path / 'config.onnx').graph.node


@pytest.fixture
def exported(shared, monkeypatch):
    """Without the seconds of an export."""
    file = detector_file(shared, 'raw')
    monkeypatch.setattr(export, 'to_onnx', lambda *_, **__: file)


def test_a_file_that_differs_is_not_written(tool, config, exported, tmp_path):
    out = tmp_path / 'net.onnx'
    out.write_text('an earlier one')
    # Random weights, and a file of others.
    code, _, error = tool(config, '--out', out)
    assert code not in (0, 2)
    assert 'The boxes differ from' in error
    assert 'Greatest absolute difference' in error
    assert error.endswith(': no file was written.')
    assert out.read_text() == 'an earlier one'


@pytest.mark.parametrize(
    ('fault', 'code'),
    [
        (lambda _: os.kill(os.getpid(), signal.SIGTERM), 128 + signal.SIGTERM),
        # Not by os.kill: SIGINT is ignored where the tests run behind nohup.
        (lambda _: signal.default_int_handler(2, None), 128 + signal.SIGINT),
        (lambda _: os.write(os.open('/dev/full', os.O_WRONLY), b'x'), 2),
    ],
)
def test_ended_in_the_middle_nothing_is_left(
    tool, config, checkpoint, exported, tmp_path, monkeypatch, fault, code
):
    monkeypatch.setattr('sb_mm.files.os.fsync', fault)
    found, _, error = tool(config, checkpoint, '--out', 'net.onnx')
    assert found == code
    assert code != 2 or 'net.onnx cannot be opened or written (No' in error
    assert not list(tmp_path.glob('*net.onnx*'))


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
        ('--out nowhere/net.onnx', "'nowhere/net.onnx' cannot be written"),
        ('--out net.pth', 'no name of a file in .onnx'),
        ('--out=', "'.' cannot be written (no name"),
        (f'--out {"n" * 300}.onnx', 'File name too long'),
        ('missing.pth', 'missing.pth'),
        ('--check-images 0', '--check-images must be'),
        ('--data-root elsewhere', 'elsewhere'),
        ('--evaluate --cfg-options test_evaluator=None', 'no test_evaluator'),
        ('--nms --cfg-options model.test_cfg.nms_pre=10', 'keeps only some'),
        ('--evaluate --cfg-options model.test_cfg.nms_pre=10', 'keeps only'),
    ],
)
def test_bad_input_is_refused_before_the_export(
    tool, config, argv, message, monkeypatch
):
    monkeypatch.setattr(export, 'to_onnx', None)
    code, _, error = tool(config, *argv.split())
    assert code == 2
    assert message in error
