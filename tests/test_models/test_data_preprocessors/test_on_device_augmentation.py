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


def random_images(count, height=SIZE, width=SIZE, channels=3):
    rng = np.random.default_rng(0)
    shape = (count, height, width, channels)
    return rng.integers(0, 256, shape, dtype=np.uint8)


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


def stock_inputs(images, **kwargs):
    """Pack and normalise on the host."""
    arguments = dict(mean=MEAN, std=STD) | kwargs
    return ClsDataPreprocessor(**arguments)(packed(images))['inputs']


def chi_square(cells, kinds):
    """Return the distance from a uniform distribution over the cells."""
    counts = torch.bincount(cells.long(), minlength=kinds)
    assert len(counts) == kinds
    expected = len(cells) / kinds
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize('flip_prob', [0.5, 0.0, 1.0, 0.2])
def test_crops_and_flips_are_independent_and_as_frequent_as_asked_for(
    flip_prob,
):
    """As the host's; of the neighbour in the batch as well."""
    torch.manual_seed(0)
    preprocessor = augmentation(flip_prob=flip_prob)
    inputs = preprocessor(repeated(DRAWS), True)['inputs']
    rows, columns, flips = seen(inputs)
    deviation = (flip_prob * (1 - flip_prob) / DRAWS) ** 0.5
    assert abs(flips.float().mean() - flip_prob) <= 3.3 * deviation
    if flip_prob != 0.5:
        return
    # Quantiles of p = 1e-3, for 80, 161 and 3 degrees of freedom.
    places = rows * OFFSETS + columns
    assert chi_square(places, OFFSETS**2) < 124.8
    assert chi_square(2 * places + flips, 2 * OFFSETS**2) < 222.2
    for values in (rows, columns):
        pairs = values[::2] * OFFSETS + values[1::2]
        assert chi_square(pairs, OFFSETS**2) < 124.8
    assert chi_square(2 * flips[::2] + flips[1::2], 4) < 16.3


def test_crops_are_the_hosts_to_the_last_bit():
    torch.manual_seed(0)
    preprocessor, data = augmentation(), repeated(200)
    inputs = preprocessor(data, True)['inputs']
    draws = torch.stack(seen(inputs), 1)
    assert len(draws.unique(dim=0)) > 100
    assert inputs.equal(stock_inputs([cut_out(*draw) for draw in draws]))
    # Each call draws again, and the seed decides.
    assert not preprocessor(data, True)['inputs'].equal(inputs)
    torch.manual_seed(0)
    assert preprocessor(data, True)['inputs'].equal(inputs)


@pytest.mark.parametrize('to_rgb', [False, True])
@pytest.mark.parametrize('channels_last', [False, True])
def test_validation_gives_every_image_as_the_host_does(to_rgb, channels_last):
    images = random_images(7)
    before = torch.get_rng_state()
    preprocessor = augmentation(to_rgb=to_rgb, channels_last=channels_last)
    inputs = preprocessor(batch_of(images, [3, 0, 6]))['inputs']
    assert torch.get_rng_state().equal(before)
    assert inputs.equal(stock_inputs(images[[3, 0, 6]], to_rgb=to_rgb))
    assert (inputs.stride(1) == 1) == channels_last
    # A batch of the host is for tests only.
    data = packed(images[[3, 0, 6]])
    found = preprocessor(data)
    assert found['inputs'].equal(inputs)
    assert [s.gt_label.item() for s in found['data_samples']] == [0, 1, 2]
    with pytest.raises(UserInputError, match='wrap .*sb_mm.IndexedImages'):
        preprocessor(data, True)


def test_sizes_and_channels_are_those_that_are_asked_for():
    images = random_images(5, height=6, width=9, channels=1)
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
    data = batch_of(random_images(5), [4, 1, 1], [2, 0, 9, 9, 1])
    samples = augmentation()(data)['data_samples']
    assert [s.gt_label.tolist() for s in samples] == [[1], [0], [0]]
    torch.manual_seed(0)
    head = LinearClsHead(num_classes=3, in_channels=6)
    features = (torch.randn(3, 6),)
    joined = augmentation()(data, True)['data_samples']
    assert len(joined) == 1
    each = [DataSample().set_gt_label(n) for n in (1, 0, 0)]
    ours, theirs = (head.loss(features, s)['loss'] for s in (joined, each))
    assert ours.equal(theirs)


def test_images_are_prepared_once_for_each_dataset(monkeypatch):
    preprocessor, moves = augmentation(), []
    move = torch.Tensor.is_pinned
    monkeypatch.setattr(
        'torch.Tensor.is_pinned', lambda x: moves.append(x) or move(x)
    )
    train = batch_of(random_images(4), [0, 1])
    val = batch_of(255 - random_images(4), [0, 1])
    for data in (train, val, train, val, dict(train, indices=val['indices'])):
        expected = stock_inputs(data['images'][:2].numpy())
        assert preprocessor(data)['inputs'].equal(expected)
    assert len(moves) == 2


def test_a_config_of_the_host_builds_it_without_random_changes():
    cfg = dict(type='sb_mm.OnDeviceAugmentation', mean=MEAN, std=STD)
    # What mmpretrain's ImageClassifier adds.
    built = MODELS.build(dict(cfg, num_classes=10, batch_augments=None))
    data = batch_of(random_images(2), [0, 1])
    before = data['images'].clone()
    training = built(data, True)['inputs']
    assert training.equal(built(data)['inputs'])
    # Neither the images change nor a checkpoint.
    training.zero_()
    assert data['images'].equal(before)
    assert list(built.state_dict()) == []


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(padding=-1), r'padding must be an integer in \[0, inf\)'),
        (dict(crop_size=(32, 32)), 'crop_size must be an integer'),
        (dict(flip_prob=1.1), r'flip_prob must be a number in \[0, 1\]'),
        (dict(mean=MEAN[:2]), 'mean has 2 numbers and std has 3: give both'),
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
    narrow = batch_of(random_images(2, 32, 24), [0])
    with pytest.raises(UserInputError, match='crop_size is 40, 8 pixels more'):
        preprocessor(narrow, True)
    grey = batch_of(random_images(2, channels=1), [0])
    with pytest.raises(UserInputError, match='have 1 channels .* 3 numbers'):
        preprocessor(grey, True)
    # Pinned, each batch would bring a copy of all, which fills the memory.
    pinned = SimpleNamespace(is_pinned=lambda: True, data_ptr=lambda: 1)
    with pytest.raises(UserInputError, match='set pin_memory=False'):
        preprocessor(dict(narrow, images=pinned))
