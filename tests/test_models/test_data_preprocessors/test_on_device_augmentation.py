"""Crop, flip and normalise on the device, compared with mmpretrain's."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.registry import MODELS  # noqa: E402
from mmpretrain.models import ClsDataPreprocessor, LinearClsHead  # noqa: E402
from mmpretrain.registry import TRANSFORMS  # noqa: E402
from mmpretrain.structures import DataSample  # noqa: E402

from sb_mm.errors import UserInputError  # noqa: E402
from sb_mm.models.data_preprocessors import (  # noqa: E402
    OnDeviceAugmentation,
)

MEAN = (125.307, 122.961, 113.8575)
STD = (51.5865, 50.847, 51.255)
SIZE, PAD = 32, 4
OFFSETS = 2 * PAD + 1
DRAWS = 8100


# Red is the row and green the column, from 1; blue is 255.
ROWS, COLUMNS = np.indices((SIZE, SIZE), np.uint8) + 1
IMAGE = np.stack([ROWS, COLUMNS, np.full_like(ROWS, 255)], -1)


def batch_of(images, indices, labels=None):
    labels = range(len(images)) if labels is None else labels
    return dict(
        images=torch.as_tensor(images),
        labels=torch.tensor(list(labels)),
        indices=torch.tensor(list(indices)),
    )


def repeated(count):
    return batch_of(IMAGE[None], [0] * count)


def random_images(*shape):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, shape, dtype=np.uint8)


IMAGES = random_images(7, SIZE, SIZE, 3)


def augmentation(mean=MEAN, std=STD, **kwargs):
    settings = dict(padding=PAD, crop_size=SIZE, flip_prob=0.5)
    return OnDeviceAugmentation(mean, std, **settings | kwargs)


def seen(inputs):
    """Return (row offset, column offset, flipped) of each crop."""
    centre = SIZE // 2
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    values = (inputs[:, :, centre].mT * std + mean).round().int()
    flip = values[:, centre, 1] > values[:, centre + 1, 1]
    column = torch.where(flip, SIZE - 1 - centre, centre)
    rows = values[:, centre, 0] - 1 - centre + PAD
    columns = values[:, centre, 1] - 1 - column + PAD
    return rows, columns, flip.int()


def cut_out(row, column, flip):
    """Write the host's crop and flip with draws that are given."""
    padded = np.pad(IMAGE, ((PAD, PAD), (PAD, PAD), (0, 0)))
    window = padded[row : row + SIZE, column : column + SIZE]
    return window[:, ::-1] if flip else window


def packed(images):
    """Return a batch of the host."""
    pack = TRANSFORMS.build(dict(type='PackInputs'))
    batch = [pack(dict(img=x, gt_label=i)) for i, x in enumerate(images)]
    return {key: [x[key] for x in batch] for key in batch[0]}


def stock_inputs(images, to_rgb=False):
    return ClsDataPreprocessor(MEAN, STD, to_rgb=to_rgb)(packed(images))[
        'inputs'
    ]


def chi_square(cells, kinds):
    """Return the distance from a uniform distribution over the cells."""
    counts = torch.bincount(cells.long(), minlength=kinds)
    assert len(counts) == kinds
    expected = len(cells) / kinds
    return float(((counts - expected) ** 2 / expected).sum())


def test_crops_and_flips_are_independent_and_the_hosts_to_the_last_bit():
    """Of the neighbour in the batch as well."""
    torch.manual_seed(0)
    preprocessor, data = augmentation(), repeated(DRAWS)
    inputs = preprocessor(data, True)['inputs']
    rows, columns, flips = draws = seen(inputs)
    # Quantiles of p = 1e-3, for 80, 161 and 3 degrees of freedom.
    places = rows * OFFSETS + columns
    assert chi_square(places, OFFSETS**2) < 124.8
    assert chi_square(2 * places + flips, 2 * OFFSETS**2) < 222.2
    for values in (rows, columns):
        pairs = values[::2] * OFFSETS + values[1::2]
        assert chi_square(pairs, OFFSETS**2) < 124.8
    assert chi_square(2 * flips[::2] + flips[1::2], 4) < 16.3
    crops = [cut_out(*draw) for draw in torch.stack(draws, 1)[:200]]
    assert inputs[:200].equal(stock_inputs(crops))
    # Each call draws again, and the seed decides.
    assert not preprocessor(data, True)['inputs'].equal(inputs)
    torch.manual_seed(0)
    assert preprocessor(data, True)['inputs'].equal(inputs)


@pytest.mark.parametrize('flip_prob', [0.0, 1.0, 0.2])
def test_flips_are_as_frequent_as_asked_for(flip_prob):
    torch.manual_seed(0)
    data = repeated(DRAWS)
    flips = seen(augmentation(flip_prob=flip_prob)(data, True)['inputs'])[2]
    deviation = (flip_prob * (1 - flip_prob) / DRAWS) ** 0.5
    assert abs(flips.float().mean() - flip_prob) <= 3.3 * deviation


@pytest.mark.parametrize('to_rgb', [False, True])
@pytest.mark.parametrize('channels_last', [False, True])
def test_validation_gives_every_image_as_the_host_does(to_rgb, channels_last):
    before = torch.get_rng_state()
    preprocessor = augmentation(to_rgb=to_rgb, channels_last=channels_last)
    inputs = preprocessor(batch_of(IMAGES, [3, 0, 6]))['inputs']
    assert torch.get_rng_state().equal(before)
    assert inputs.equal(stock_inputs(IMAGES[[3, 0, 6]], to_rgb))
    assert (inputs.stride(1) == 1) == channels_last
    # A batch of the host is for tests only.
    data = packed(IMAGES[[3, 0, 6]])
    found = preprocessor(data)
    assert found['inputs'].equal(inputs)
    assert [s.gt_label.item() for s in found['data_samples']] == [0, 1, 2]
    with pytest.raises(UserInputError, match='wrap .*sb_mm.IndexedImages'):
        preprocessor(data, True)


def test_sizes_and_channels_are_those_that_are_asked_for():
    images = random_images(5, 6, 9, 1)
    data = batch_of(images, range(5))
    expected = (torch.tensor(images).movedim(-1, 1).float() - 100) / 50

    def grey(**kwargs):
        return augmentation([100.0], [50.0], **kwargs)

    plain = grey(padding=0, crop_size=None, flip_prob=0.0)
    assert plain(data, True)['inputs'].equal(expected)
    moved = grey(padding=2, crop_size=None)
    assert moved(data, True)['inputs'].shape == (5, 1, 6, 9)
    smaller = grey(padding=0, crop_size=4)
    assert smaller(data, True)['inputs'].shape == (5, 1, 4, 4)
    for preprocessor in (plain, moved, smaller):
        assert preprocessor(data)['inputs'].equal(expected)


def test_labels_follow_the_indices_and_the_loss_is_the_hosts():
    data = batch_of(IMAGES[:5], [4, 1, 1], [2, 0, 9, 9, 1])
    samples = augmentation()(data)['data_samples']
    assert [s.gt_label.tolist() for s in samples] == [[1], [0], [0]]
    torch.manual_seed(0)
    head = LinearClsHead(num_classes=3, in_channels=6)
    features = (torch.randn(3, 6),)
    joined = augmentation()(data, True)['data_samples']
    each = [DataSample().set_gt_label(n) for n in (1, 0, 0)]
    ours, theirs = (head.loss(features, s)['loss'] for s in (joined, each))
    assert ours.equal(theirs)


def test_images_are_prepared_once_for_each_dataset():
    preprocessor = augmentation()
    for images in (IMAGES.copy(), 255 - IMAGES):
        expected, data = stock_inputs(images[:2]), batch_of(images, [0, 1])
        for _ in range(2):
            assert preprocessor(data)['inputs'].equal(expected)
            images[:] = 0  # whose copy is there


def test_a_config_of_the_host_builds_it_without_random_changes():
    cfg = dict(type='sb_mm.OnDeviceAugmentation', mean=MEAN, std=STD)
    # What mmpretrain's ImageClassifier adds.
    built = MODELS.build(dict(cfg, num_classes=10, batch_augments=None))
    data = batch_of(IMAGES, [0, 1])
    assert built(data, True)['inputs'].equal(built(data)['inputs'])
    assert list(built.state_dict()) == []  # of any checkpoint


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(padding=-1), r'padding must be an integer in \[0, inf\)'),
        (dict(crop_size=(32, 32)), 'crop_size must be an integer'),
        (dict(flip_prob=1.1), r'flip_prob must be a number in \[0, 1\]'),
        (dict(mean=MEAN[:2]), 'mean has 2 numbers and std 3, for 2 channel'),
        (dict(std=(1, 0, 1)), r'std must be a number in \(0, inf\)'),
        (dict(batch_augments=dict(augments='Mixup')), 'no batch_augments'),
    ],
    ids=repr,
)
def test_arguments_out_of_range_name_what_is_allowed(kwargs, message):
    with pytest.raises(UserInputError, match=message):
        augmentation(**kwargs)


def test_images_that_do_not_fit_are_refused():
    preprocessor = augmentation(crop_size=40)
    narrow = batch_of(IMAGES[:, :, :24], [0])
    with pytest.raises(UserInputError, match='crop_size is 40, 8 pixels more'):
        preprocessor(narrow, True)
    grey = batch_of(random_images(2, SIZE, SIZE, 1), [0])
    with pytest.raises(UserInputError, match='mean has 3 .* for 1 channels'):
        preprocessor(grey, True)
    # Pinned, each batch would bring a copy of all, which fills the memory.
    pinned = SimpleNamespace(is_pinned=lambda: True, data_ptr=lambda: 1)
    with pytest.raises(UserInputError, match='set pin_memory=False'):
        preprocessor(dict(narrow, images=pinned))
