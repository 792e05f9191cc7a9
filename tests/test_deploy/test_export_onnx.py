"""A network and its ONNX file give the same, whatever the batch."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from sb_mm.deploy import fold
from sb_mm.errors import UserInputError

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
DetDataSample = pytest.importorskip('mmdet.structures').DetDataSample
DataSample = pytest.importorskip('mmpretrain.structures').DataSample

from tiny_detector import SIDE, TEST_CFG, detector, trained  # noqa: E402

from sb_mm.deploy import this_cpu  # noqa: E402
from sb_mm.deploy.agreement import ExportFailedError, compare  # noqa: E402
from sb_mm.deploy.nms import SuppressingDetector  # noqa: E402
from sb_mm.deploy.onnx import exportable, to_onnx  # noqa: E402
from sb_mm.deploy.onnx_runner import OnnxRunner  # noqa: E402
from sb_mm.deploy.this_cpu import for_this_cpu  # noqa: E402

SIZE = (SIDE, SIDE)
pytestmark = pytest.mark.usefixtures('small')


def runner(file, test_cfg=TEST_CFG):
    onnx.helper.set_model_props(file, dict(test_cfg=json.dumps(test_cfg)))
    return OnnxRunner(file.SerializeToString())


def image_batch(number, sample=DetDataSample):
    torch.manual_seed(number)
    # Blocks of colour, as noise looks the same everywhere.
    coarse = torch.rand(number, 3, 6, 6) * 255
    meta = dict(
        img_shape=SIZE,
        ori_shape=(2 * SIDE, SIDE // 2),
        scale_factor=(2.0, 0.5),
    )
    return dict(
        inputs=list(nn.functional.interpolate(coarse, size=SIZE)),
        data_samples=[sample(metainfo=meta) for _ in coarse],
    )


def predictions(predict, batch):
    with torch.no_grad():
        return predict(copy.deepcopy(batch))


def test_one_classifier_file_takes_every_batch_size():
    torch.manual_seed(1)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(
                type='ImageClassifier',
                data_preprocessor=dict(
                    mean=[120, 110, 100], std=[60, 50, 70], to_rgb=True
                ),
                backbone=dict(
                    type='sb_mm.AttentionShuffleNetV2',
                    widen_factor=0.5,
                    attention_conv_cfg=dict(type='sb_mm.DynamicConv2d'),
                ),
                neck=dict(type='sb_mm.AveragePoolDropout'),
                head=dict(
                    type='LinearClsHead', num_classes=5, in_channels=1024
                ),
            )
        )
    # Neither all alike nor one certain.
    nn.init.normal_(trained(model).head.fc.weight, std=0.05)
    module = exportable(fold(copy.deepcopy(model)), SIZE)
    file = runner(to_onnx(module, torch.rand(2, 3, *SIZE), dynamic=True))
    batches = [image_batch(n, DataSample) for n in (1, 2, 3)]
    for batch in batches:
        expected = predictions(model.test_step, batch)
        for a, b in zip(file.predict(batch), expected, strict=True):
            difference = (a.pred_score - b.pred_score).abs().max()
            assert difference < 1e-5
            assert a.pred_label == b.pred_label
        assert 0.3 < expected[0].pred_score.max() < 0.999
    reference = exportable(copy.deepcopy(model), SIZE)
    list(compare(file, reference, model, batches))
    # Of another network, and from another form of it.
    model.head.fc.bias.data[0] += 0.1
    for other in (exportable(model, SIZE), reference):
        with pytest.raises(ExportFailedError, match='The scores differ'):
            list(compare(file, other, model, batches))


def detections(sample):
    """Rows of label, score and box, in an order of their own."""
    found = sample.pred_instances
    rows = torch.cat(
        [found.labels[:, None], found.scores[:, None], found.bboxes], 1
    ).tolist()
    rows.sort(key=lambda row: [round(value, 3) for value in row])
    return np.array(rows).reshape(-1, 6)


@pytest.mark.parametrize('kind', ['raw', 'nms', 'nms cpu'])
def test_a_detector_file_finds_what_the_detector_finds(kind, detector_file):
    for most in (4000, 4):
        cfg = dict(TEST_CFG, max_per_img=most)
        model = detector(cfg)
        file = runner(detector_file(kind), cfg)
        for batch in (image_batch(1), image_batch(3)):
            expected = predictions(model.test_step, batch)
            for a, b in zip(file.predict(batch), expected, strict=True):
                found, wanted = detections(a), detections(b)
                assert len(wanted) == 4 if most == 4 else len(wanted) > 10
                np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3)


def test_the_exported_form_pads_as_the_preprocessor_does():
    model = detector(pad_size_divisor=32, pad_value=3)
    form = exportable(model, SIZE)
    # Priors of 64 pixels, boxes within 48.
    assert len(form.priors) == 6 * (32**2 + 16**2 + 8**2)
    itself = SimpleNamespace(names=form.output_names, run=form)
    *_, line = compare(itself, form, model, [image_batch(1)])
    assert line.startswith('0 of ')


def other_weights(model):
    weight = model.bbox_head.cls_convs[0][-1].weight.data
    weight += 0.01 * torch.randn_like(weight)


def no_number(model):
    nn.init.constant_(model.bbox_head.cls_convs[0][-1].bias, torch.nan)


def other_overlap(model):
    model.bbox_head.test_cfg['nms'] = dict(type='nms', iou_threshold=0.3)


def other_threshold(model):
    model.bbox_head.test_cfg['score_thr'] = 0.995


def other_coder(model):
    model.bbox_head.bbox_coder.stds = (0.1, 0.1, 0.3, 0.3)


# What is wrong with a file's outputs.
FAULTS = {
    'raw': (
        lambda box, score: (box + 1, score),
        lambda box, score: (box, score.flip(-1)),
        lambda box, score: (box * torch.nan, score),
    ),
    'nms': (
        lambda i, label, box, score: (i, label, box + 1, score),
        lambda i, label, box, score: (i, 1 - label, box, score),
        lambda *rows: (*rows[:3], rows[3] * torch.nan),
        lambda *rows: [r[torch.arange(len(r)) % 10 != 0] for r in rows],
        lambda *rows: [torch.cat([r, r[:10]]) for r in rows],
    ),
}


@pytest.mark.parametrize('kind', FAULTS)
def test_a_file_that_computes_something_else_is_refused(
    kind, detector_file, monkeypatch
):
    file, model = runner(detector_file(kind)), detector()
    batches = [image_batch(n) for n in (1, 2)]

    def check(model, reference):
        return list(compare(file, reference, model, batches))

    form, run = exportable(model, SIZE), file.run
    assert check(model, form)
    for fault in FAULTS[kind]:
        with monkeypatch.context() as patch:
            patch.setattr(file, 'run', lambda x, f=fault: tuple(f(*run(x))))
            with pytest.raises(ExportFailedError, match=r'differ|do not foll'):
                check(model, form)
    alterations = [(other_weights, 'differ|do not'), (no_number, 'itself')]
    if kind == 'nms':
        others = (other_overlap, other_threshold)
        alterations += [(other, 'do not follow') for other in others]
    for alter, message in alterations:
        model = detector()
        alter(model)
        with pytest.raises(ExportFailedError, match=message):
            check(model, exportable(model, SIZE))
    # Which test_step alone decodes otherwise.
    model = detector()
    other_coder(model)
    with pytest.raises(ExportFailedError, match='do not follow'):
        check(model, form)


def test_soft_suppression_is_left_to_whoever_uses_a_raw_file(detector_file):
    nms = dict(type='soft_nms', iou_threshold=0.45)
    model, file = detector(dict(TEST_CFG, nms=nms)), detector_file('raw')
    form = exportable(model, SIZE)
    *_, line = compare(runner(file), form, model, [image_batch(2)])
    assert line.startswith('detections not compared')


@pytest.mark.parametrize(
    ('spread', 'settings'),
    [
        (1e-5, dict(candidates_per_class=None)),
        (1e-5, dict(candidates_per_class=200, max_per_img=100)),
        (1, dict(candidates_per_class=200)),
        (1, dict(score_thr=1.1)),
    ],
)
@torch.no_grad()
def test_what_rounding_decides_is_no_fault(spread, settings, detector_file):
    """Ties of a young network, and boxes that are the same when clipped."""
    cfg = dict(TEST_CFG, **settings)
    model = detector(cfg)
    torch.manual_seed(1)
    for conv in model.bbox_head.cls_convs:
        nn.init.normal_(conv[-1].weight, std=spread)
    form = SuppressingDetector(exportable(model, SIZE))
    file = runner(detector_file('nms'), cfg)

    def run(images):
        boxes, scores = form.detector(images)
        rounding = 1e-6 * torch.randn_like(scores)
        return form.suppression(boxes, scores + rounding)

    file.run = run
    batch = image_batch(2)
    (line,) = compare(file, form.detector, model, [batch])
    assert line.startswith('0 of ')
    a, b = (
        detections(predictions(p, batch)[0])[:, 2:]
        for p in (file.predict, model.test_step)
    )
    if spread < 1:
        # Other boxes than those of test_step.
        assert (abs(a[:, None] - b).max(-1).min(1) > 1).sum() > 10
    else:
        assert (len(a) == 0) == ('score_thr' in settings)


def test_on_this_cpu_the_shift_leaves_the_features_in_their_layout(
    detector_file,
):
    graph = detector_file('nms cpu').graph
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
    net, x = Shifted().eval(), torch.rand(1, 3, 4, 5)
    plain = to_onnx(net, x, dynamic=False)
    found = runner(for_this_cpu(plain)).run(x)
    for value, expected in zip(found, net(x), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)

    # A version that lays out otherwise.
    def without_a_bias(model, laid_out=this_cpu._laid_out):
        model = laid_out(model)
        conv = next(n for n in model.graph if n.op_type.endswith('Conv'))
        conv.resize_inputs(2)
        return model

    monkeypatch.setattr(this_cpu, '_laid_out', without_a_bias)
    with pytest.raises(UserInputError, match='leave --this-cpu out'):
        for_this_cpu(plain)
