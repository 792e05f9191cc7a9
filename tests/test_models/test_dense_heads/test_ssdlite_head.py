"""The head of SSDLite: layers, loss and prediction."""

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import nn

from sb_mm.models import AttentionMobileNetV2, SSDLiteNeck

MODELS = pytest.importorskip('mmdet.registry').MODELS
SIDES = (19, 10, 5, 3, 2, 1)
STDS = np.array([0.1, 0.1, 0.2, 0.2])


def build(num_classes=3, channels=(4, 6, 4, 4, 4, 4), settings=(), **test_cfg):
    return MODELS.build(
        dict(
            settings,
            type='sb_mm.SSDLiteHead',
            num_classes=num_classes,
            in_channels=channels,
            anchor_generator=dict(
                type='sb_mm.SSDLitePriorGenerator',
                scale_major=False,
                input_size=300,
                strides=[16, 32, 64, 100, 150, 300],
                ratios=[[2, 3]] * 6,
                min_sizes=[60, 105, 150, 195, 240, 285],
                max_sizes=[105, 150, 195, 240, 285, 330],
            ),
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder',
                clip_border=False,
                target_means=[0.0] * 4,
                target_stds=STDS.tolist(),
            ),
            train_cfg=ConfigDict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=0.5,
                    neg_iou_thr=0.5,
                    min_pos_iou=0.0,
                    ignore_iof_thr=-1,
                    gt_max_assign_all=False,
                ),
                sampler=dict(type='PseudoSampler'),
                smoothl1_beta=1.0,
                allowed_border=-1,
                pos_weight=-1,
                neg_pos_ratio=3,
                debug=False,
            ),
            test_cfg=ConfigDict(
                nms_pre=60000,  # -1 would drop the last box of a level
                nms=dict(type='nms', iou_threshold=0.45),
                min_bbox_size=0,
                score_thr=0.01,
                max_per_img=200,
                **test_cfg,
            ),
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
    boxes = [torch.randn(n, 24, s, s) * 1.5 for s in SIDES]
    return [[t.requires_grad_() for t in part] for part in (scores, boxes)]


def flat(tensors, width):
    """Return ``(N, 3000, width)`` in the order of the priors, as NumPy."""
    levels = [
        t.detach().permute(0, 2, 3, 1).reshape(len(t), -1, width)
        for t in tensors
    ]
    return torch.cat(levels, 1).double().numpy()


def objects(boxes, labels):
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        labels=torch.tensor(labels, dtype=torch.long),
    )


def metas(n=1, scale=(1.0, 1.0)):
    return [
        dict(
            img_shape=(300, 300),
            pad_shape=(300, 300),
            batch_input_shape=(300, 300),
            ori_shape=(300 / scale[1], 300 / scale[0]),
            scale_factor=scale,
        )
    ] * n


def priors(head):
    levels = head.prior_generator.grid_priors(
        [(s, s) for s in SIDES], device='cpu'
    )
    return torch.cat(levels).double().numpy()


# ---- layers ------------------------------------------------------------


def test_the_detector_has_3388228_parameters_in_four_parts(parameter_count):
    head = build(20, (576, 1280, 512, 256, 256, 64))
    assert parameter_count(AttentionMobileNetV2()) == 2223872
    assert parameter_count(SSDLiteNeck()) == 652736
    assert parameter_count(head.cls_convs) == 406260
    assert parameter_count(head.reg_convs) == 105360
    assert parameter_count(head) == 406260 + 105360
    assert 2223872 + 652736 + 406260 + 105360 == 3388228


def test_levels_1_to_5_are_depthwise_separable_and_the_last_is_1x1(head):
    for convs, outputs_ in ((head.cls_convs, 4), (head.reg_convs, 4)):
        for channels, level in zip((4, 6, 4, 4, 4), convs, strict=False):
            depthwise, norm, act, pointwise = list(level[0]) + [level[1]]
            assert depthwise.groups == channels
            assert depthwise.kernel_size == (3, 3)
            assert depthwise.padding == (1, 1)
            assert depthwise.bias is not None
            assert isinstance(norm, nn.BatchNorm2d)
            assert isinstance(act, nn.ReLU6)
            assert pointwise.kernel_size == (1, 1)
            assert pointwise.out_channels == 6 * outputs_
            assert pointwise.bias is not None
        assert [type(m) for m in convs[5]] == [nn.Conv2d]
        assert convs[5][0].kernel_size == (1, 1)


def test_the_forward_is_the_layers_written_out(head, randomise):
    head = randomise(build(), 2.0).eval()
    torch.manual_seed(3)
    channels = (4, 6, 4, 4, 4, 4)
    x = [
        torch.randn(2, c, s, s) * 3
        for c, s in zip(channels, SIDES, strict=True)
    ]
    scores, boxes = head(x)
    for outs, convs in ((scores, head.cls_convs), (boxes, head.reg_convs)):
        for level in range(6):
            y = x[level]
            if level < 5:
                depthwise, norm = convs[level][0][:2]
                y = norm(depthwise(y))
                if level == 0:
                    assert y.min() < 0
                    assert y.max() > 6
                y = y.clamp(0, 6)
            expected = convs[level][-1](y)
            torch.testing.assert_close(outs[level], expected)


# ---- loss --------------------------------------------------------------


def overlaps(a, b):
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a = np.prod(a[:, 2:] - a[:, :2], axis=1)
    area_b = np.prod(b[:, 2:] - b[:, :2], axis=1)
    return both / (area_a[:, None] + area_b[None] - both)


def match(priors, boxes):
    """Return the object of each prior, -1 for background."""
    iou = overlaps(priors, boxes)
    owner = np.where(iou.max(1) >= 0.5, iou.argmax(1), -1)
    for index in range(len(boxes)):
        owner[iou[:, index].argmax()] = index
    return owner


def encode(priors, boxes):
    size, own = priors[:, 2:] - priors[:, :2], boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] + boxes[:, 2:] - priors[:, :2] - priors[:, 2:]) / 2
    return np.hstack([shift / size, np.log(own / size)]) / STDS


def loss_sums(priors, scores, deltas, boxes, labels, background=3):
    """Return an image's two loss sums and its number of positives."""
    owner = match(priors, boxes)
    positive = owner >= 0
    target = np.where(positive, labels[owner], background)
    log_z = np.log(np.exp(scores).sum(1))
    entropy = log_z - scores[np.arange(len(scores)), target]
    hard = np.sort(entropy[~positive])[::-1][: 3 * positive.sum()]
    wanted = encode(priors[positive], boxes[owner[positive]])
    error = np.abs(deltas[positive] - wanted)
    smooth = np.where(error < 1, error**2 / 2, error - 0.5)
    assert (error < 1).any()
    assert (error > 1).any()
    count = positive.sum()
    return entropy[positive].sum() + hard.sum(), smooth.sum(), count


IMAGES = [
    # the second, a small object, has no prior at IoU 0.5 but its best one
    ([[30, 40, 140, 160], [201, 203, 221, 219]], [2, 0]),
    ([[5, 5, 290, 280], [100, 60, 260, 130], [40, 90, 110, 150]], [1, 1, 0]),
]


@pytest.mark.parametrize('chosen', [[0], [1], [0, 1]], ids=repr)
def test_the_loss_is_the_one_written_out_here(head, chosen):
    scores, deltas = outputs(len(chosen))
    images = [IMAGES[i] for i in chosen]
    losses = head.loss_by_feat(
        scores,
        deltas,
        [objects(*p) for p in images],
        metas(len(chosen)),
    )
    parts = [
        loss_sums(
            priors(head),
            flat(scores, 4)[n],
            flat(deltas, 4)[n],
            np.array(boxes, dtype=float),
            np.array(labels),
        )
        for n, (boxes, labels) in enumerate(images)
    ]
    total = sum(count for _, _, count in parts)
    for n, (classes, boxes, _) in enumerate(parts):
        got = losses['loss_cls'][n].item(), losses['loss_bbox'][n].item()
        assert got[0] == pytest.approx(classes / total, rel=1e-4)
        assert got[1] == pytest.approx(boxes / total, rel=1e-4)


def test_an_object_below_iou_half_still_gets_its_best_prior(head):
    iou = overlaps(priors(head), np.array([[201.0, 203, 221, 219]]))
    assert iou.max() < 0.5
    assert (match(priors(head), np.array([[201.0, 203, 221, 219]])) == 0).any()
    scores, deltas = outputs()
    loss = head.loss_by_feat(
        scores, deltas, [objects([[201, 203, 221, 219]], [0])], metas()
    )
    assert loss['loss_bbox'][0] > 0


def test_an_image_without_objects_has_a_box_loss_of_exactly_zero(head):
    scores, deltas = outputs()
    losses = head.loss_by_feat(scores, deltas, [objects([], [])], metas())
    assert losses['loss_bbox'][0].item() == 0
    (losses['loss_cls'][0].sum() + losses['loss_bbox'][0]).backward()
    for tensor in [*scores, *deltas]:
        assert torch.isfinite(tensor.grad).all()
    assert all(not t.grad.any() for t in deltas)


def test_an_image_without_objects_trains_beside_one_with(head):
    scores, deltas = outputs(2)
    losses = head.loss_by_feat(
        scores, deltas, [objects([], []), objects(*IMAGES[1])], metas(2)
    )
    assert losses['loss_bbox'][0].item() == 0
    # The empty one does not count as a positive in the divisor either.
    boxes, labels = map(np.array, IMAGES[1])
    classes, offsets, count = loss_sums(
        priors(head), flat(scores, 4)[1], flat(deltas, 4)[1], boxes, labels
    )
    assert losses['loss_cls'][1].item() == pytest.approx(classes / count)
    assert losses['loss_bbox'][1].item() == pytest.approx(offsets / count)


def test_every_parameter_of_the_head_gets_a_gradient(all_gradients):
    torch.manual_seed(0)
    head = build().train()
    channels = (4, 6, 4, 4, 4, 4)
    x = [torch.randn(4, c, s, s) for c, s in zip(channels, SIDES, strict=True)]
    # A positive prior on every level: squares of its smallest size.
    centre = [152, 144, 160, 150, 225, 150]
    sizes = (60, 105, 150, 195, 240, 285)
    boxes = [
        [c - s / 2, c - s / 2, c + s / 2, c + s / 2]
        for c, s in zip(centre, sizes, strict=True)
    ]
    truth = [objects(boxes, [0, 1, 2, 0, 1, 2])] * 4
    losses = head.loss_by_feat(*head(x), truth, metas(4))
    (sum(losses['loss_cls']).sum() + sum(losses['loss_bbox'])).backward()
    # The norm takes the bias of the convolution before it away.
    lost = [n for n in all_gradients(head) if not n.endswith('.0.0.bias')]
    assert lost == []


# ---- prediction --------------------------------------------------------


def quiet_outputs(found):
    """Background everywhere but at (level, row, column, prior, label)."""
    scores = [torch.zeros(1, 24, s, s) for s in SIDES]
    for level in scores:
        level.view(1, 6, 4, *level.shape[2:])[:, :, 3] = 20
    for level, row, column, prior, label, logit in found:
        view = scores[level].view(1, 6, 4, SIDES[level], SIDES[level])
        view[0, prior, label, row, column] = logit
    return scores, [torch.zeros(1, 24, s, s) for s in SIDES]


def predict(head, scores, boxes, scale=(1.0, 1.0), rescale=False):
    return head.predict_by_feat(
        scores, boxes, batch_img_metas=metas(1, scale), rescale=rescale
    )[0]


@pytest.mark.parametrize('limit', [{}, dict(candidates_per_class=200)])
def test_a_prior_with_zero_offsets_is_predicted_as_it_is(limit):
    head = build(**limit)
    found = predict(head, *quiet_outputs([(1, 4, 6, 0, 2, 21.0)]))
    # level 2: centre (6.5, 4.5) * 32 = (208, 144), square of 105
    expected = [[155.5, 91.5, 260.5, 196.5]]
    torch.testing.assert_close(found.bboxes, torch.tensor(expected))
    assert found.labels.tolist() == [2]
    # softmax of 20, 21 and two zeros
    assert found.scores[0].item() == pytest.approx(1 / (1 + np.exp(-1)), 1e-5)


@pytest.mark.parametrize('rescale', [False, True])
@pytest.mark.parametrize('limit', [{}, dict(candidates_per_class=200)])
def test_no_detection_at_all_is_an_empty_result(limit, rescale):
    found = predict(build(**limit), *quiet_outputs([]), rescale=rescale)
    assert found.bboxes.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)


def test_neighbours_of_a_class_are_suppressed_and_others_are_not():
    head = build()
    same = [(1, 4, 6, 0, 2, 21.0), (1, 4, 6, 1, 2, 22.0)]
    assert predict(head, *quiet_outputs(same)).labels.tolist() == [2]
    other = [(1, 4, 6, 0, 2, 21.0), (1, 4, 6, 1, 1, 22.0)]
    assert predict(head, *quiet_outputs(other)).labels.tolist() == [1, 2]


def test_a_limited_prediction_is_the_best_candidates_suppressed():
    scores, boxes = outputs(spread=2.0)
    everything = build()
    everything.test_cfg.max_per_img = 10**6
    limited = build(candidates_per_class=5)
    limited.test_cfg.max_per_img = 10**6
    shares = np.exp(flat(scores, 4)[0])
    shares = shares / shares.sum(1, keepdims=True)
    found = predict(limited, scores, boxes)
    all_found = predict(everything, scores, boxes)
    for label in range(3):
        best = np.sort(shares[:, label])[::-1][:5]
        mine = found.scores[found.labels == label].detach().numpy()
        assert 1 <= len(mine) <= 5
        assert np.isin(mine.round(5), best.round(5).astype('f4')).all()
        assert len(all_found.scores[all_found.labels == label]) > 5


@pytest.mark.parametrize('limit', [1, 2, 7, 1000])
def test_the_best_of_each_class_are_those_of_a_loop(limit):
    from sb_mm.models.dense_heads.ssdlite_head import best_of_each_class

    torch.manual_seed(0)
    scores = torch.randperm(60).float()
    labels = torch.randint(0, 5, (60,))
    labels[labels == 3] = 4  # a label without any score
    expected = []
    for label in range(5):
        mine = [
            (-scores[i].item(), i) for i in range(60) if labels[i] == label
        ]
        expected += [i for _, i in sorted(mine)[:limit]]
    assert best_of_each_class(scores, labels, limit).tolist() == expected


@pytest.mark.parametrize('rescale', [False, True])
def test_boxes_are_clipped_to_the_image_after_the_suppression(rescale):
    head = build(candidates_per_class=200)
    # At the left border and half outside: 105 px at x = 16 of level 2, and
    # its other square, of 125 px, which overlaps less than what is clipped.
    found = [(1, 4, 0, 0, 2, 22.0), (1, 4, 0, 5, 2, 21.0)]
    scores, deltas = quiet_outputs(found)
    # To the left by 0.9 of a width of 105 px, so that 10 px are left of it.
    deltas[1].view(6, 4, 10, 10)[0, 0, 4, 0] = -0.6 / STDS[0]
    scale = (0.5, 0.25)
    out = predict(head, scores, deltas, scale, rescale)
    unit = [2.0, 4.0, 2.0, 4.0] if rescale else [1.0] * 4
    # -47 +- 52.5 and 16 +- 52.5 * sqrt(1 / 3)
    first = [0.0, 91.5, 5.5, 196.5]
    torch.testing.assert_close(
        out.bboxes[0], torch.tensor(first) * torch.tensor(unit)
    )
    assert out.bboxes.min() == 0
    assert len(out) == 2
    everything = predict(head, *outputs(spread=2.0), scale, rescale).bboxes
    side = torch.tensor([600.0, 1200.0] if rescale else [300.0, 300.0])
    assert (everything >= 0).all()
    assert (everything[:, 2:] <= side).all()
    torch.testing.assert_close(everything[:, 2:].amax(0), side)


def test_suppression_sees_boxes_that_are_not_clipped():
    head = build(candidates_per_class=200)
    # Squares of 105 and 125.5 px around (16, 144), both moved by -60 px.
    scores, deltas = quiet_outputs(
        [(1, 4, 0, 0, 2, 22.0), (1, 4, 0, 1, 2, 21.0)]
    )
    view = deltas[1].view(6, 4, 10, 10)
    view[0, 0, 4, 0], view[1, 0, 4, 0] = -60 / 10.5, 10 / 12.55
    # IoU 0.31 as they are; what is left in the image does not overlap it at
    # all, and clipped to it they would.
    assert len(predict(head, scores, deltas)) == 2


def test_settings_of_the_hosts_configs_are_taken():
    head = build(
        settings=dict(
            use_depthwise=True, norm_cfg=None, act_cfg=dict(type='ReLU')
        )
    )
    assert [type(m) for m in head.reg_convs[0][0]] == [nn.Conv2d, nn.ReLU]
    other = build(settings=dict(norm_cfg=dict(type='BN', eps=0.5)))
    assert other.cls_convs[0][0][1].eps == 0.5
    with pytest.raises(ValueError, match='use_depthwise must be one of True'):
        build(settings=dict(use_depthwise=False))


def test_the_convolutions_start_as_xavier_draws_them():
    head = build()
    head.init_weights()
    for conv in (m for m in head.modules() if isinstance(m, nn.Conv2d)):
        bound = (6 / conv.weight[0, 0].numel()) ** 0.5
        bound /= (conv.weight.size(0) + conv.weight.size(1)) ** 0.5
        assert 0.5 * bound < conv.weight.abs().max() <= bound
