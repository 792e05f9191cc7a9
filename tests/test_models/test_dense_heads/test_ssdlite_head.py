"""The head of SSDLite: layers, loss and prediction."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from torch import nn
from torchvision.ops import box_convert, box_iou

from sb_mm import models

MODELS = pytest.importorskip('mmdet.registry').MODELS
CONFIGS = Path(__file__).parents[3] / 'configs'
MODEL = Config.fromfile(CONFIGS / '_base_/models/ssdlite_mobilenetv2.py').model
SIDES = (19, 10, 5, 3, 2, 1)
CHANNELS = (4, 6, 4, 4, 4, 4)
STDS = torch.tensor([0.1, 0.1, 0.2, 0.2])


def build(num_classes=3, channels=CHANNELS, settings=(), **test_cfg):
    """Build the head of the configs, with other sizes."""
    return MODELS.build(
        dict(
            MODEL.bbox_head,
            num_classes=num_classes,
            in_channels=channels,
            train_cfg=MODEL.train_cfg,
            test_cfg=ConfigDict(MODEL.test_cfg, **test_cfg),
            **dict(settings),
        )
    )


@pytest.fixture(scope='module')
def head():
    torch.manual_seed(0)
    return build()


def outputs(n=1, classes=4, spread=3.0, seed=2):
    """Return random predictions of a batch, as the head gives them."""
    torch.manual_seed(seed)
    scores = [torch.randn(n, 6 * classes, s, s) * spread for s in SIDES]
    return scores, [torch.randn(n, 24, s, s) * 1.5 for s in SIDES]


def flat(tensors, width):
    """Return ``(N, 3000, width)`` in the order of the priors."""
    levels = [
        t.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, width))
        for t in tensors
    ]
    return torch.cat(levels, 1)


def metas(n=1, scale=(1.0, 1.0)):
    return [
        dict(
            img_shape=(300, 300),
            pad_shape=(300, 300),
            ori_shape=(300 / scale[1], 300 / scale[0]),
            scale_factor=scale,
        )
    ] * n


# ---- layers ------------------------------------------------------------


def test_the_forward_is_the_layers_written_out(randomise):
    head = randomise(build(), 3.0).eval()
    torch.manual_seed(3)
    sizes = zip(CHANNELS, SIDES, strict=True)
    x = [torch.randn(2, c, s, s) * 3 for c, s in sizes]
    scores, boxes = head(x)
    for outs, convs in ((scores, head.cls_convs), (boxes, head.reg_convs)):
        for level in range(6):
            y = x[level]
            if level < 5:
                depthwise, norm = convs[level][0][:2]
                assert depthwise.groups == CHANNELS[level]
                y = norm(depthwise(y))
                assert y.min() < 0
                assert y.max() > 6 or level
                y = y.clamp(0, 6)
            expected = convs[level][-1](y)
            torch.testing.assert_close(outs[level], expected)


# ---- loss --------------------------------------------------------------


def loss_sums(priors, scores, deltas, truth, background=3):
    """Return an image's two loss sums and its number of positives."""
    boxes, labels = truth.bboxes, truth.labels
    if not len(boxes):
        return 0, 0, 0
    iou = box_iou(priors, boxes)
    owner = torch.where(iou.amax(1) >= 0.5, iou.argmax(1), -1)
    owner[iou.argmax(0)] = torch.arange(len(boxes))
    positive = owner >= 0
    target = torch.where(positive, labels[owner], background)
    entropy = F.cross_entropy(scores, target, reduction='none')
    hard = entropy[~positive].sort(descending=True)[0][: 3 * positive.sum()]
    pairs = (priors[positive], boxes[owner[positive]])
    prior, own = (box_convert(b, 'xyxy', 'cxcywh') for b in pairs)
    offsets = (own - prior)[:, :2] / prior[:, 2:]
    wanted = torch.cat([offsets, (own / prior)[:, 2:].log()], 1) / STDS
    smooth = F.smooth_l1_loss(deltas[positive], wanted, reduction='sum')
    return entropy[positive].sum() + hard.sum(), smooth, positive.sum()


IMAGES = [
    InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float).view(-1, 4),
        labels=torch.tensor(labels, dtype=torch.long),
    )
    for boxes, labels in (
        # The second object has no prior at IoU 0.5 but its best one.
        ([[30, 40, 140, 160], [201, 203, 221, 219]], [2, 0]),
        ([[5, 5, 290, 280], [9, 60, 260, 99], [40, 90, 110, 150]], [1, 1, 0]),
        # No positive, so no hard negative and no part in the divisor either.
        ([], []),
    )
]


@pytest.mark.parametrize('chosen', [[0], [0, 1], [1, 2], [2]], ids=repr)
def test_the_loss_is_the_one_written_out_here(head, chosen):
    scores, deltas = outputs(len(chosen))
    images = [IMAGES[i] for i in chosen]
    losses = head.loss_by_feat(scores, deltas, images, metas(len(chosen)))
    sizes = [(s, s) for s in SIDES]
    priors = torch.cat(head.prior_generator.grid_priors(sizes, device='cpu'))
    rows = zip(flat(scores, 4), flat(deltas, 4), images, strict=True)
    parts = [loss_sums(priors, *row) for row in rows]
    total = max(1, sum(count for _, _, count in parts))
    for n, (classes, boxes, _) in enumerate(parts):
        for name, value in (('loss_cls', classes), ('loss_bbox', boxes)):
            expected = pytest.approx(float(value) / float(total), rel=1e-4)
            assert losses[name][n].item() == expected


# ---- prediction --------------------------------------------------------


def quiet_outputs(*found):
    """Background everywhere but at level 2's (column, prior, label, logit)."""
    scores = [torch.zeros(1, 24, s, s) for s in SIDES]
    for level in scores:
        level.view(1, 6, 4, *level.shape[2:])[:, :, 3] = 20
    for column, prior, label, logit in found:
        scores[1].view(6, 4, 10, 10)[prior, label, 4, column] = logit
    return scores, [torch.zeros(1, 24, s, s) for s in SIDES]


def predict(head, scores, boxes, scale=(1.0, 1.0), rescale=False):
    return head.predict_by_feat(
        scores, boxes, batch_img_metas=metas(1, scale), rescale=rescale
    )[0]


def test_a_prior_with_zero_offsets_is_predicted_as_it_is(head):
    found = predict(head, *quiet_outputs((6, 0, 2, 21.0)))
    # level 2: centre (6.5, 4.5) * 32 = (208, 144), square of 105
    expected = [[155.5, 91.5, 260.5, 196.5]]
    torch.testing.assert_close(found.bboxes, torch.tensor(expected))
    assert found.labels.tolist() == [2]
    # softmax of 20, 21 and two zeros: 1 / (1 + 1 / e)
    assert found.scores[0].item() == pytest.approx(0.731059, 1e-5)


@pytest.mark.parametrize('limit', [None, 200])
def test_no_detection_at_all_is_an_empty_result(limit):
    head = build(candidates_per_class=limit)
    found = predict(head, *quiet_outputs())
    assert found.bboxes.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)


def test_the_best_candidates_of_each_class_are_kept():
    scores, boxes = outputs(spread=2.0)
    # Suppresses nothing.
    every = dict(nms=dict(type='nms', iou_threshold=1.0))
    found = [
        predict(build(candidates_per_class=n, **every), scores, boxes)
        for n in (None, 5, 10000)
    ]
    for label in range(3):
        all_, five, more = (f.scores[f.labels == label] for f in found)
        assert len(all_) > 5
        assert five.equal(all_[:5])
        assert more.equal(all_)


@pytest.mark.parametrize('rescale', [False, True])
def test_boxes_are_clipped_to_the_image_after_the_suppression(head, rescale):
    # Squares of 105 px around (16, 144) and (48, 144): one moved by -60 px,
    # one stretched to 300 px and its right side put on the other's.
    scores, deltas = quiet_outputs((0, 0, 2, 22.0), (1, 0, 2, 21.0))
    x, _, w, _ = deltas[1].view(6, 4, 10, 10)[0, :, 4]
    x[0], x[1], w[1] = -60 / 10.5, -189.5 / 10.5, math.log(300 / 105) / 0.2
    scale = (0.5, 0.25)
    found = predict(head, scores, deltas, scale, rescale)
    # IoU 0.35, clipped 1: one would suppress the other.
    expected = torch.tensor([[0, 91.5, 8.5, 196.5]] * 2)
    if rescale:
        expected *= torch.tensor([2, 4, 2, 4])
    torch.testing.assert_close(found.bboxes, expected, rtol=0, atol=1e-3)
    side = torch.tensor([600.0, 1200.0] if rescale else [300.0, 300.0])
    boxes = predict(head, *outputs(spread=2.0), scale, rescale).bboxes
    torch.testing.assert_close(boxes[:, 2:].amax(0), side)


def test_settings_of_the_hosts_configs_are_taken(parameter_count):
    priors = MODEL.bbox_head.anchor_generator
    head = models.SSDLiteHead(anchor_generator=priors)
    assert parameter_count(head.cls_convs) == 406260
    assert parameter_count(head.reg_convs) == 105360
    bare = build(
        settings=dict(use_depthwise=True, norm_cfg=None, act_cfg=None)
    )
    kinds = [type(m) for m in bare.reg_convs[0][0]]
    assert kinds == [nn.Conv2d, nn.Identity, nn.Identity]
    other = build(settings=dict(norm_cfg=dict(type='BN', eps=0.5)))
    assert other.cls_convs[0][0][1].eps == 0.5
    with pytest.raises(ValueError, match='use_depthwise must be one of True'):
        build(settings=dict(use_depthwise=False))
