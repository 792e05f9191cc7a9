import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmdet')

import cv2  # noqa: E402
from mmdet.datasets.transforms import (  # noqa: E402
    PackDetInputs,
    PhotoMetricDistortion,
)
from mmdet.registry import TRANSFORMS as MMDET_TRANSFORMS  # noqa: E402
from mmdet.structures.bbox import HorizontalBoxes  # noqa: E402

from sb_mm.datasets.transforms import SSDAugmentation  # noqa: E402
from sb_mm.datasets.transforms.geometry import Geometry  # noqa: E402
from sb_mm.errors import UserInputError  # noqa: E402

PHOTOMETRIC = dict(
    brightness_delta=32,
    contrast_range=(0.5, 1.5),
    saturation_range=(0.5, 1.5),
    hue_delta=18,
)
EXPAND = dict(mean=[120.5, 130.25, 140.75], ratio_range=(1, 4))
CROP = dict(min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3)


def image(height=97, width=131, seed=0):
    """Smooth, so that a shift by a fraction of a pixel is small, not nil."""
    noise = np.random.RandomState(seed).randint(0, 256, (7, 9, 3))
    return cv2.resize(noise.astype(np.uint8), (width, height))


def sample(img, boxes):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return dict(
        img=img,
        img_path='JPEGImages/a.jpg',
        img_shape=img.shape[:2],
        ori_shape=img.shape[:2],
        gt_bboxes=HorizontalBoxes(boxes.copy()),
        gt_bboxes_labels=np.arange(len(boxes)),
        gt_ignore_flags=np.arange(len(boxes)) % 2 == 1,
    )


def stock(img, geometry, fill):
    """The output by way of the whole canvas, each step as mmdet does it."""
    height, width = img.shape[:2]
    left, top, right, bottom = geometry.patch
    pad = max(0, -left, -top, right - width, bottom - height)
    canvas = np.full((height + 2 * pad, width + 2 * pad, 3), fill, np.float32)
    canvas[pad : pad + height, pad : pad + width] = img
    patch = canvas[top + pad : bottom + pad, left + pad : right + pad]
    out = cv2.resize(patch, geometry.scale)
    return out[:, ::-1] if geometry.flip else out


GEOMETRIES = [
    Geometry(np.array(patch), scale, flip, np.arange(0))
    for patch in (
        (0, 0, 131, 97),
        (20, 11, 85, 90),
        (-60, -31, 240, 205),
        (-60, 20, 60, 200),
        (40, 30, 260, 97),
        (-100, -90, 30, 10),
    )
    for scale in ((64, 48), (150, 150))
    for flip in (False, True)
]


@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('distorts', ['nothing', 'image', 'all'])
def test_the_pixels_are_those_of_the_expanded_image(geometry, distorts):
    transform = SSDAugmentation(
        geometry.scale,
        photometric=None if distorts == 'nothing' else PHOTOMETRIC,
        expand=EXPAND,
        distort_fill=distorts == 'all',
    )
    img, fill, most, much = image(), transform.expand.mean, 0.6, 6
    if distorts != 'nothing':
        # Not so dark that it becomes negative: hue is undefined there.
        img, most, much = img // 2 + 64, 1.5, 12

    np.random.seed(0)
    out = transform.render(img, geometry)
    np.random.seed(0)
    colours = PhotoMetricDistortion(**PHOTOMETRIC)
    if distorts == 'image':
        img = colours.transform(dict(img=img))['img']
    expected = stock(img, geometry, fill)
    if distorts == 'all':
        expected = colours.transform(dict(img=expected))['img']

    # 8-bit rounding (0.5) and OpenCV's 32nds of a pixel; larger only where
    # the patch cuts the image: stock repeats the last pixel of the patch
    # there. A shift by a pixel gives means of 2 and more.
    difference = np.abs(out - expected)
    assert difference.mean() < most
    assert (difference > much).mean() < 0.02
    around = (expected == np.float32(fill)).all(2)
    assert distorts == 'all' or (out[around] == np.float32(fill)).all()


def test_boxes_labels_and_flags_agree_with_the_pixels():
    np.random.seed(0)
    transform = SSDAugmentation((120, 90), expand=EXPAND, crop=CROP)
    # A blue, a green and a red box; the fill has 120.5 to 140.75.
    boxes = [(2, 40, 22, 58), (30, 15, 50, 35), (58, 2, 78, 20)]
    img = np.zeros((60, 80, 3), np.uint8)
    for colour, (left, top, right, bottom) in enumerate(boxes):
        img[top:bottom, left:right, colour] = 255
    flips = partly = 0
    for _ in range(200):
        results = transform(sample(img, boxes))
        labels = results['gt_bboxes_labels']
        assert [*results['gt_ignore_flags']] == [*(labels == 1)]
        found = results['gt_bboxes'].tensor.numpy()
        for label, box in zip(labels, found, strict=True):
            others = np.delete(results['img'], label, 2).max(2)
            own = results['img'][..., label] - others > 127
            rows, columns = (np.flatnonzero(own.any(axis)) for axis in (1, 0))
            seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert np.abs(box - seen).max() <= 1
        flips += results['flip']
        partly += len(labels) < 3
    assert 60 < flips < 140
    assert 40 < partly < 160


def test_an_image_without_boxes_is_cropped_too():
    np.random.seed(0)
    transform = SSDAugmentation((30, 30), crop=CROP)
    drawn = [transform.draw(131, 97, np.zeros((0, 4))) for _ in range(20)]
    assert len({d.scale_factor for d in drawn}) > 10
    assert transform(sample(image(), []))['gt_bboxes'].tensor.numel() == 0


# The geometry of 3,000 draws of mmdet's Expand, MinIoURandomCrop, Resize to
# (60, 60) and RandomFlip, with EXPAND and CROP, on the images of `statistics`:
# of each statistic some values and the share of draws that are not above.
STOCK = json.loads((Path(__file__).parent / 'mmdet_draws.json').read_text())


def statistics(transform, count):
    """On images of many shapes with one to four boxes."""
    columns = {name: [] for name in STOCK}
    rng = np.random.RandomState(101)
    for height, width in rng.randint(40, 90, (count, 2)):
        corners = rng.uniform(0, 0.7, (rng.randint(1, 5), 2))
        sizes = rng.uniform(0.1, 0.3, corners.shape)
        boxes = np.hstack((corners, corners + sizes))
        boxes = np.float32(boxes * (width, height, width, height))
        drawn = transform.draw(int(width), int(height), boxes)
        sides = drawn.patch[2:] - drawn.patch[:2]
        inside = drawn.patch.clip(0, (width, height) * 2)
        seen = (inside[2:] - inside[:2]).prod() / sides.prod()
        columns['seen'].append(seen)
        columns['scale'].append(sides.prod() / width / height)
        columns['aspect'].append(sides[1] / height / sides[0] * width)
        columns['kept'].append(len(drawn.kept))
        columns['flip'].append(drawn.flip)
        for i, values in enumerate(drawn.boxes(boxes[drawn.kept]).T):
            columns[f'box {i}'].extend(values)
    return columns


def deviations(transform, count):
    """Return the largest differences of shares, in standard deviations."""
    found = {}
    for name, values in statistics(transform, count).items():
        ours, (points, shares) = np.array(values), np.array(STOCK[name])
        ours = (ours[:, None] <= points + 1e-3).mean(0)
        spread = np.sqrt(shares * (1 - shares) * (1 / count + 1 / 3000))
        found[name] = (np.abs(ours - shares) / spread.clip(1e-3)).max()
    return found


def test_the_draws_have_the_distribution_of_stock():
    np.random.seed(1)
    ours = SSDAugmentation((60, 60), expand=EXPAND, crop=CROP)
    found = deviations(ours, 3000)
    assert len(found) == 9
    assert max(found.values()) < 4, found
    # The same number of draws tells other settings apart.
    wrong = CROP | dict(min_crop_size=0.4)
    other = SSDAugmentation((60, 60), expand=EXPAND, crop=wrong)
    assert max(deviations(other, 3000).values()) > 6


def test_it_packs_to_what_stock_packs_to():
    stock_steps = [
        dict(type='PhotoMetricDistortion', **PHOTOMETRIC),
        dict(type='Expand', **EXPAND),
        dict(type='MinIoURandomCrop', **CROP),
        dict(type='Resize', scale=(300, 300), keep_ratio=False),
        dict(type='RandomFlip', prob=0.5),
    ]
    options = dict(photometric=PHOTOMETRIC, expand=EXPAND, crop=CROP)
    ours = [dict(type='sb_mm.SSDAugmentation', **options)]
    packed = []
    for steps in (ours, stock_steps):
        results = sample(image(), [(10, 10, 60, 60)]) | dict(img_id='a')
        for step in steps:
            results = MMDET_TRANSFORMS.build(step)(results)
        inputs, target = PackDetInputs()(results).values()
        boxes = target.gt_instances.bboxes
        kinds = inputs.dtype, inputs.shape, boxes.dtype, type(boxes)
        packed.append((*kinds, {*target.metainfo_keys()}))
    assert packed[0] == packed[1]


def test_masks_are_refused():
    results = sample(image(), [(0, 0, 9, 9)]) | dict(gt_masks=[1])
    with pytest.raises(UserInputError, match='there is gt_masks'):
        SSDAugmentation()(results)


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (dict(scale=300), 'scale'),
        (dict(scale=(0, 300)), 'scale'),
        (dict(flip_prob=2), 'flip_prob'),
        (dict(expand=dict(ratio=2)), "'ratio': 2.*Expand"),
        (dict(crop=dict(min_iou=0.1)), "'min_iou': 0.1.*MinIoURandomCrop"),
    ],
)
def test_unusable_arguments_are_refused(arguments, named):
    with pytest.raises(UserInputError, match=named):
        SSDAugmentation(**arguments)
