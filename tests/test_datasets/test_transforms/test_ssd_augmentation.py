import copy

import numpy as np
import pytest

pytest.importorskip('mmdet')

import cv2  # noqa: E402
from mmdet.datasets.transforms import (  # noqa: E402
    Expand,
    MinIoURandomCrop,
    PackDetInputs,
    PhotoMetricDistortion,
    RandomFlip,
    Resize,
)
from mmdet.registry import TRANSFORMS as MMDET_TRANSFORMS  # noqa: E402
from mmdet.structures.bbox import HorizontalBoxes  # noqa: E402
from scipy.stats import chi2_contingency, ks_2samp  # noqa: E402

from sb_mm.datasets.transforms import SSDAugmentation  # noqa: E402
from sb_mm.datasets.transforms.geometry import Geometry  # noqa: E402
from sb_mm.errors import UserInputError  # noqa: E402

PHOTOMETRIC = dict(
    brightness_delta=32,
    contrast_range=(0.5, 1.5),
    saturation_range=(0.5, 1.5),
    hue_delta=18,
)
EXPAND = dict(mean=[120, 130, 140], ratio_range=(1, 4))
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


def stock(img, geometry, fill=None, photometric=None):
    """The output by way of the whole canvas, each step as mmdet does it."""
    if photometric is not None:
        img = photometric.transform(dict(img=img))['img']
    img = img.astype(np.float32)
    left, top, right, bottom = geometry.patch
    pad = max(0, -left, -top, right - img.shape[1], bottom - img.shape[0])
    canvas = np.empty(
        (img.shape[0] + 2 * pad, img.shape[1] + 2 * pad, 3), np.float32
    )
    canvas[:] = (0, 0, 0) if fill is None else fill
    canvas[pad : -pad or None, pad : -pad or None] = img
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
def test_the_pixels_are_those_of_the_expanded_image(geometry):
    transform = SSDAugmentation(geometry.scale, expand=EXPAND)
    img = image()

    difference = transform.render(img, geometry) - stock(
        img, geometry, transform.expand.mean
    )

    # 8-bit rounding (0.5) and OpenCV's 32nds of a pixel; larger only in
    # single pixels, where the patch cuts the image: stock repeats the last
    # pixel of the patch there, and this one sees the next.
    assert np.abs(difference).mean() < 0.6
    assert (np.abs(difference) > 6).mean() < 0.02


def test_a_shift_by_a_pixel_would_be_seen():
    geometry = GEOMETRIES[8]
    transform = SSDAugmentation(geometry.scale, expand=EXPAND)
    img = image()
    moved = np.roll(img, 1, axis=1)

    difference = transform.render(moved, geometry) - stock(
        img, geometry, transform.expand.mean
    )

    assert np.abs(difference).mean() > 0.6


def test_the_space_around_the_image_has_the_exact_colour():
    transform = SSDAugmentation(
        (100, 100), expand=dict(mean=[1.5, 2.25, 3.75], to_rgb=False)
    )
    geometry = Geometry(
        np.array((-97, -97, 97, 97)), (100, 100), False, np.arange(0)
    )

    out = transform.render(image(97, 97), geometry)

    assert (out[:49] == (1.5, 2.25, 3.75)).all()
    assert (out[:, :49] == (1.5, 2.25, 3.75)).all()
    assert (np.abs(out[51:, 51:] - (1.5, 2.25, 3.75)) > 1).any(2).mean() > 0.9


@pytest.mark.parametrize('height', [1, 2])
def test_an_image_of_a_single_row_is_seen(height):
    img = np.full((height, 50, 3), 200, np.uint8)
    transform = SSDAugmentation((30, 30), expand=EXPAND)
    patch = np.array((-25, -height, 75, 2 * height))

    for flip in (False, True):
        out = transform.render(
            img, Geometry(patch, (30, 30), flip, np.arange(0))
        )
        # Row 15's centre is at most 0.05 pixels off the image's own.
        assert np.abs(out[15, 15] - 200).max() <= 5


@pytest.mark.parametrize('distort_fill', [False, True])
@pytest.mark.parametrize('seed', range(6))
def test_the_colours_are_those_of_stock(distort_fill, seed):
    geometry = GEOMETRIES[8 + seed]
    transform = SSDAugmentation(
        geometry.scale,
        photometric=PHOTOMETRIC,
        expand=EXPAND,
        distort_fill=distort_fill,
    )
    # Not so dark that brightness makes it negative: hue is undefined there.
    img = image() // 2 + 64

    np.random.seed(seed)
    out = transform.render(img, geometry)
    np.random.seed(seed)
    colours = PhotoMetricDistortion(**PHOTOMETRIC)
    if distort_fill:
        plain = stock(img, geometry, transform.expand.mean)
        expected = colours.transform(dict(img=plain))['img']
    else:
        expected = stock(img, geometry, transform.expand.mean, colours)

    difference = np.abs(out - expected)
    assert difference.mean() < 1.5
    assert (difference > 12).mean() < 0.03


def test_boxes_agree_with_the_pixels():
    np.random.seed(0)
    transform = SSDAugmentation((120, 90), expand=EXPAND, crop=CROP)
    flips = 0
    for _ in range(200):
        img = np.zeros((60, 80, 3), np.uint8)
        img[15:35, 30:62] = (0, 0, 255)
        results = transform(sample(img, [(30, 15, 62, 35)]))
        # Red is nowhere else above half: the fill has 120 (to_rgb).
        red = results['img'][..., 2] - results['img'][..., 1] > 127
        rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        box = results['gt_bboxes'].tensor.numpy()[0]
        assert np.abs(box - seen).max() <= 1
        flips += results['flip']
    assert 60 < flips < 140


def white(height, width):
    return np.full((height, width, 3), 255, np.uint8)


def draws_of_stock(shapes, boxes):
    """Draws of mmdet's own transforms, on white images in black space."""
    expand = Expand(mean=(0, 0, 0), ratio_range=(1, 4))
    steps = [
        expand,
        MinIoURandomCrop(**CROP),
        Resize(scale=(60, 60), keep_ratio=False),
        RandomFlip(prob=0.5),
    ]
    for (height, width), corners in zip(shapes, boxes, strict=True):
        results = sample(white(height, width), corners)
        sizes = []
        for step in steps:
            results = step(results)
            sizes.append(results['img'].shape)
        crop = np.array(sizes[1][:2]) / (height, width)
        yield crop, results, 1 - results['img'][..., 0].mean() / 255


def draws_of_ours(shapes, boxes):
    transform = SSDAugmentation(
        (60, 60), expand=dict(mean=(0, 0, 0), ratio_range=(1, 4)), crop=CROP
    )
    for (height, width), corners in zip(shapes, boxes, strict=True):
        results = sample(white(height, width), corners)
        results = transform(results)
        # The patch's size is the output's over the scale.
        crop = 60 / np.array(results['scale_factor'][::-1])
        filled = 1 - results['img'][..., 0].mean() / 255
        yield crop / (height, width), results, filled


def statistics(draws):
    columns = dict(scale=[], aspect=[], fill=[], boxes=[], kept=[], flip=[])
    for (vertical, horizontal), results, fill in draws:
        columns['scale'].append(np.round(vertical * horizontal, 6))
        columns['aspect'].append(np.round(vertical / horizontal, 6))
        columns['fill'].append(fill)
        columns['boxes'].append(results['gt_bboxes'].tensor.numpy())
        columns['kept'].append(len(results['gt_bboxes_labels']))
        columns['flip'].append(results['flip'])
    boxes = np.round(np.concatenate(columns.pop('boxes')), 1)
    return columns | {f'box {i}': boxes[:, i] for i in range(4)}


def p_values(ours, stock):
    """Two-sample tests: of histograms for the discrete ones, else KS."""
    values = {}
    for name in ours:
        a, b = np.array(ours[name]), np.array(stock[name])
        if name in ('kept', 'flip'):
            top = int(max(a.max(), b.max())) + 1
            table = [np.bincount(v.astype(int), minlength=top) for v in (a, b)]
            table = np.array(table)
            values[name] = chi2_contingency(table[:, table.sum(0) > 10])[1]
        else:
            values[name] = ks_2samp(a, b).pvalue
    return values


def scenes(count, seed):
    """Images of many shapes with one to four boxes."""
    rng = np.random.RandomState(seed)
    shapes = rng.randint(40, 90, (count, 2))
    boxes = []
    for height, width in shapes:
        corners = rng.uniform(0, 0.7, (rng.randint(1, 5), 2))
        sizes = rng.uniform(0.1, 0.3, corners.shape)
        both = np.hstack((corners, corners + sizes))
        boxes.append(both * (width, height, width, height))
    return shapes, boxes


@pytest.mark.slow
def test_10_000_draws_have_the_distribution_of_stock():
    np.random.seed(1)
    shapes, boxes = scenes(10_000, seed=101)
    expected = statistics(draws_of_stock(shapes, boxes))

    values = p_values(statistics(draws_of_ours(shapes, boxes)), expected)

    assert len(values) == 9
    assert min(values.values()) > 0.01, values


def test_the_test_of_distributions_sees_a_wrong_one(monkeypatch):
    np.random.seed(0)
    shapes, boxes = scenes(2_000, seed=1)
    right = statistics(draws_of_ours(shapes, boxes))
    monkeypatch.setitem(CROP, 'min_crop_size', 0.6)

    values = p_values(statistics(draws_of_ours(shapes, boxes)), right)

    assert min(values.values()) < 1e-4


def test_labels_and_flags_stay_with_their_boxes():
    np.random.seed(0)
    transform = SSDAugmentation((300, 300), crop=CROP, flip_prob=0)
    sides = [(0, 0, 20, 40), (60, 10, 80, 50), (30, 20, 50, 30)]
    partly = 0
    for _ in range(100):
        results = transform(sample(image(50, 80), sides))
        kept = results['gt_bboxes_labels']
        assert (results['gt_ignore_flags'] == (kept % 2 == 1)).all()
        widths = np.array(sides, float)[kept]
        scale = results['scale_factor'][1]
        heights = (widths[:, 3] - widths[:, 1]) * scale
        box = results['gt_bboxes'].tensor.numpy()
        assert (box[:, 3] - box[:, 1] <= heights + 1e-3).all()
        partly += 0 < len(kept) < 3
    assert partly > 10


def test_an_image_without_boxes_is_cropped_too():
    np.random.seed(0)
    transform = SSDAugmentation((30, 30), crop=CROP)
    scales = set()
    for _ in range(20):
        results = transform(sample(image(), []))
        assert results['gt_bboxes'].tensor.shape == (0, 4)
        scales.add(results['scale_factor'])
    assert len(scales) > 10


def test_the_same_seed_gives_the_same_output_and_the_input_stays():
    transform = SSDAugmentation(
        photometric=PHOTOMETRIC, expand=EXPAND, crop=CROP
    )
    img = image()
    outs = []
    for seed in (5, 5, 6):
        np.random.seed(seed)
        outs.append(transform(sample(img, [(10, 10, 60, 60)]))['img'])

    assert (outs[0] == outs[1]).all()
    assert not np.array_equal(outs[0], outs[2])
    assert (img == image()).all()


def test_it_packs_to_what_stock_packs_to():
    stock_steps = [
        dict(type='PhotoMetricDistortion', **PHOTOMETRIC),
        dict(type='Expand', **EXPAND),
        dict(type='MinIoURandomCrop', **CROP),
        dict(type='Resize', scale=(300, 300), keep_ratio=False),
        dict(type='RandomFlip', prob=0.5),
    ]
    ours = MMDET_TRANSFORMS.build(
        dict(
            type='sb_mm.SSDAugmentation',
            photometric=PHOTOMETRIC,
            expand=EXPAND,
            crop=CROP,
        )
    )
    results = sample(image(), [(10, 10, 60, 60)])
    results['img_id'] = 'a'
    expected = copy.deepcopy(results)
    for step in stock_steps:
        expected = MMDET_TRANSFORMS.build(step)(expected)

    packed = PackDetInputs()(ours(results))
    expected = PackDetInputs()(expected)

    assert packed['inputs'].dtype == expected['inputs'].dtype
    assert packed['inputs'].shape == expected['inputs'].shape
    a, b = packed['data_samples'], expected['data_samples']
    assert set(a.metainfo_keys()) == set(b.metainfo_keys())
    assert type(a.gt_instances.bboxes) is type(b.gt_instances.bboxes)
    assert a.gt_instances.bboxes.dtype == b.gt_instances.bboxes.dtype


@pytest.mark.parametrize(
    ('box', 'words'),
    [
        ((10, 10, 5, 20), r'a\.jpg has a malformed box, \[10'),
        ((10, 20, 15, 10), r'a\.jpg has a malformed box'),
        ((np.nan, 0, 1, 1), r'a\.jpg has a malformed box'),
        ((0, 0, np.inf, 1), r'a\.jpg has a malformed box'),
    ],
)
def test_a_malformed_box_is_named_with_its_image(box, words):
    with pytest.raises(UserInputError, match=words):
        SSDAugmentation()(sample(image(), [(0, 0, 9, 9), box]))


def test_other_unusable_input_is_named():
    transform = SSDAugmentation()
    results = sample(image(), [(0, 0, 9, 9)])
    with pytest.raises(UserInputError, match=r'a\.jpg has gt_masks'):
        transform(results | dict(gt_masks=[1]))
    with pytest.raises(UserInputError, match='1 boxes and 2 labels'):
        transform(results | dict(gt_bboxes_labels=np.arange(2)))
    with pytest.raises(UserInputError, match='8-bit colour images'):
        transform(results | dict(img=image().astype(np.float32)))


@pytest.mark.parametrize(
    'arguments',
    [
        dict(scale=300),
        dict(scale=(0, 300)),
        dict(flip_prob=2),
        dict(expand=dict(ratio=2)),
        dict(crop=dict(min_iou=0.1)),
    ],
)
def test_unusable_arguments_are_refused(arguments):
    with pytest.raises(UserInputError, match=next(iter(arguments))):
        SSDAugmentation(**arguments)
