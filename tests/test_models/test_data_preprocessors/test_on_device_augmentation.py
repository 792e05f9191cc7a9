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


def _position_image():
    """Red is the row and green the column, from 1; blue is 255."""
    rows, columns = np.indices((SIZE, SIZE), np.uint8) + 1
    return np.stack([rows, columns, np.full_like(rows, 255)], -1)


IMAGE = _position_image()


def batch_of(images, indices, labels=None):
    images = torch.as_tensor(np.asarray(images))
    if labels is None:
        labels = range(len(images))
    return dict(
        images=images,
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


def raw(inputs):
    """Undo the normalisation: ``(B, H, W, C)``, whole numbers."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return (inputs.movedim(1, -1) * std + mean).round().int()


def seen(inputs):
    """Return (row offset, column offset, flipped) of each crop."""
    centre = SIZE // 2
    values = raw(inputs)[:, centre]
    flip = values[:, centre, 1] > values[:, centre + 1, 1]
    column = torch.where(flip, SIZE - 1 - centre, centre)
    rows = values[:, centre, 0] - 1 - centre + PAD
    columns = values[:, centre, 1] - 1 - column + PAD
    return rows, columns, flip.int()


class FixedCrop:
    """mmpretrain's crop and flip with draws that are given."""

    def __init__(self, row, column, flip):
        crop = dict(type='RandomCrop', crop_size=SIZE, padding=PAD)
        self.crop = TRANSFORMS.build(crop)
        window = (int(row), int(column), SIZE, SIZE)
        self.crop.rand_crop_params = lambda img: window
        prob = float(flip)
        self.flip = TRANSFORMS.build(dict(type='RandomFlip', prob=prob))

    def __call__(self, image):
        return self.flip(self.crop(dict(img=image)))['img']


def stock_inputs(images, **kwargs):
    """Pack and normalise on the host."""
    arguments = dict(mean=MEAN, std=STD) | kwargs
    pack = TRANSFORMS.build(dict(type='PackInputs'))
    inputs = [pack(dict(img=image))['inputs'] for image in images]
    return ClsDataPreprocessor(**arguments)(dict(inputs=inputs))['inputs']


def stock_draws():
    np.random.seed(0)
    crop = dict(type='RandomCrop', crop_size=SIZE, padding=PAD)
    flip = dict(type='RandomFlip', prob=0.5, direction='horizontal')
    crop, flip = TRANSFORMS.build(crop), TRANSFORMS.build(flip)
    draws = []
    for _ in range(4):
        images = [
            flip(crop(dict(img=IMAGE)))['img'] for _ in range(DRAWS // 4)
        ]
        draws.append(seen(stock_inputs(images)))
    return [torch.cat(parts) for parts in zip(*draws, strict=True)]


def device_draws():
    torch.manual_seed(0)
    preprocessor, data = augmentation(), repeated(DRAWS // 4)
    draws = [seen(preprocessor(data, True)['inputs']) for _ in range(4)]
    return [torch.cat(parts) for parts in zip(*draws, strict=True)]


def chi_square(cells, kinds):
    """Return the distance from a uniform distribution over the cells."""
    counts = torch.bincount(cells.long(), minlength=kinds)
    assert len(counts) == kinds
    expected = len(cells) / kinds
    return float(((counts - expected) ** 2 / expected).sum())


# Statistics


@pytest.mark.parametrize('draw', [stock_draws, device_draws])
def test_crops_and_flips_have_the_distribution_of_the_host(draw):
    rows, columns, flips = draw()
    # Quantiles of p = 1e-3, for 80 and 161 degrees of freedom: where, and
    # whether a flip depends on where.
    places = rows * OFFSETS + columns
    assert chi_square(places, OFFSETS**2) < 124.8
    assert chi_square(2 * places + flips, 2 * OFFSETS**2) < 222.2
    # 3.3 standard deviations of a fair coin.
    assert abs(flips.float().mean() - 0.5) < 3.3 * 0.5 / DRAWS**0.5


def test_an_image_does_not_depend_on_its_neighbour_in_the_batch():
    rows, columns, flips = device_draws()
    for values in (rows, columns):
        pairs = values[::2] * OFFSETS + values[1::2]
        assert chi_square(pairs, OFFSETS**2) < 124.8
    # For 3 degrees of freedom.
    assert chi_square(2 * flips[::2] + flips[1::2], 4) < 16.3


@pytest.mark.parametrize('flip_prob', [0.0, 1.0, 0.2])
def test_flips_are_as_frequent_as_asked_for(flip_prob):
    torch.manual_seed(0)
    data = augmentation(flip_prob=flip_prob)(repeated(2000), True)
    share = seen(data['inputs'])[2].float().mean()
    deviation = (flip_prob * (1 - flip_prob) / 2000) ** 0.5
    assert abs(share - flip_prob) <= 3.3 * deviation


# Values


def test_crops_are_the_hosts_to_the_last_bit():
    torch.manual_seed(0)
    inputs = augmentation()(repeated(200), True)['inputs']
    draws = list(zip(*seen(inputs), strict=True))
    assert len(set(map(str, draws))) > 100
    expected = stock_inputs([FixedCrop(*draw)(IMAGE) for draw in draws])
    assert inputs.equal(expected)
    # Black before the normalisation, as in the host.
    corner = inputs[[tuple(map(int, d)) == (0, 0, 0) for d in draws]]
    assert len(corner)
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    for value in corner[:, :, :PAD].movedim(1, -1).reshape(-1, 3):
        assert value.equal(black)


def test_validation_gives_every_image_as_the_host_does():
    images = random_images(7)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    data = augmentation()(batch_of(images, [3, 0, 6]))
    assert torch.get_rng_state().equal(before)
    expected = stock_inputs(images[[3, 0, 6]])
    torch.testing.assert_close(data['inputs'], expected, rtol=0, atol=1e-6)
    assert data['inputs'].dtype == torch.float32
    assert data['inputs'].is_contiguous()


@pytest.mark.parametrize('to_rgb', [False, True])
def test_channels_are_exchanged_as_by_the_host(to_rgb):
    images = random_images(3)
    data = augmentation(to_rgb=to_rgb)(batch_of(images, range(3)))
    assert data['inputs'].equal(stock_inputs(images, to_rgb=to_rgb))


def test_channels_last_changes_the_memory_and_no_value(is_channels_last):
    data = batch_of(random_images(3), range(3))
    outputs = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        preprocessor = augmentation(channels_last=channels_last)
        outputs.append(preprocessor(data, True)['inputs'])
    assert is_channels_last(outputs[1])
    assert not is_channels_last(outputs[0])
    assert outputs[0].equal(outputs[1])


def test_a_crop_of_another_size_is_for_training_only():
    images = random_images(2)
    preprocessor = augmentation(padding=0, crop_size=20)
    data = batch_of(images, [1])
    assert preprocessor(data, True)['inputs'].shape == (1, 3, 20, 20)
    assert preprocessor(data)['inputs'].equal(stock_inputs(images[1:]))


def test_without_a_crop_size_windows_are_as_large_as_the_images():
    images = random_images(5, height=6, width=9)
    data = batch_of(images, range(5))
    plain = augmentation(padding=0, crop_size=None, flip_prob=0.0)
    assert plain(data, True)['inputs'].equal(stock_inputs(images))
    moved = augmentation(padding=2, crop_size=None)(data, True)['inputs']
    assert moved.shape == (5, 3, 6, 9)


def test_grey_images_have_one_channel():
    images = random_images(3, channels=1)
    data = batch_of(images, range(3))
    inputs = augmentation([100.0], [50.0])(data)['inputs']
    expected = (torch.tensor(images[:, None, :, :, 0]).float() - 100) / 50
    assert inputs.equal(expected)


# Labels


def test_labels_follow_the_indices():
    data = batch_of(random_images(5), [4, 1, 1], [7, 8, 9, 10, 11])
    preprocessor = augmentation()
    (training,) = preprocessor(data, True)['data_samples']
    assert training.gt_label.tolist() == [11, 8, 8]
    samples = preprocessor(data)['data_samples']
    assert [s.gt_label.tolist() for s in samples] == [[11], [8], [8]]


def test_the_loss_is_that_of_a_sample_for_each_image():
    data = batch_of(random_images(5), range(5), [0, 2, 1, 1, 0])
    torch.manual_seed(0)
    head = LinearClsHead(num_classes=3, in_channels=6)
    features = (torch.randn(5, 6),)
    samples = augmentation()(data, True)['data_samples']
    each = [DataSample().set_gt_label(int(n)) for n in data['labels']]
    assert len(samples) == 1
    ours, theirs = (head.loss(features, s)['loss'] for s in (samples, each))
    assert ours.equal(theirs)


# State


def test_the_seed_decides_and_each_call_draws_again():
    preprocessor, data = augmentation(), repeated(50)
    torch.manual_seed(3)
    first, second = (preprocessor(data, True)['inputs'] for _ in range(2))
    torch.manual_seed(3)
    again = preprocessor(data, True)['inputs']
    torch.manual_seed(4)
    other = preprocessor(data, True)['inputs']
    assert first.equal(again)
    assert not first.equal(second)
    assert not first.equal(other)


def test_images_are_prepared_once_for_each_data_set(monkeypatch):
    preprocessor, moves = augmentation(), []
    move = preprocessor._move
    monkeypatch.setattr(
        preprocessor, '_move', lambda data: moves.append(1) or move(data)
    )
    train = batch_of(random_images(4), [0, 1])
    val = batch_of(255 - random_images(4), [0, 1])
    for data in (train, val, train, val, dict(train, indices=val['indices'])):
        expected = stock_inputs(data['images'][:2].numpy())
        assert preprocessor(data)['inputs'].equal(expected)
    assert len(moves) == 2


def test_the_images_do_not_change():
    data = batch_of(random_images(4), range(4))
    before = data['images'].clone()
    augmentation(padding=0)(data, True)['inputs'].zero_()
    assert data['images'].equal(before)


def test_it_adds_nothing_to_a_checkpoint():
    preprocessor = augmentation()
    preprocessor(repeated(2), True)
    assert list(preprocessor.state_dict()) == []


def test_a_config_of_the_host_builds_it_under_its_own_name():
    built = MODELS.build(
        dict(
            type='sb_mm.OnDeviceAugmentation',
            mean=MEAN,
            std=STD,
            num_classes=10,
            batch_augments=None,
        )
    )
    assert isinstance(built, OnDeviceAugmentation)
    data = batch_of(random_images(2), [0, 1])
    assert built(data, True)['inputs'].equal(built(data)['inputs'])


# What it refuses


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(padding=-1), r'padding must be an integer in \[0, inf\)'),
        (dict(padding=(4, 4)), 'padding must be an integer'),
        (dict(crop_size=0), r'crop_size must be an integer in \[1, inf\)'),
        (dict(crop_size=(32, 32)), 'crop_size must be an integer'),
        (dict(flip_prob=1.1), r'flip_prob must be a number in \[0, 1\]'),
        (dict(mean=MEAN[:2]), 'mean has 2 numbers and std has 3: give both'),
        (dict(std=(1, 0, 1)), r'std must be a number in \(0, inf\)'),
        (
            dict(batch_augments=dict(augments='Mixup')),
            "no batch_augments: use mmpretrain's ClsDataPreprocessor",
        ),
    ],
    ids=repr,
)
def test_arguments_out_of_range_name_what_is_allowed(kwargs, message):
    with pytest.raises(UserInputError, match=message):
        augmentation(**kwargs)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(
    'data', [dict(inputs=[torch.zeros(3, 4, 4)]), [], None], ids=type
)
def test_a_batch_of_another_data_set_is_refused(data, training):
    with pytest.raises(UserInputError, match='wrap .*sb_mm.IndexedImages'):
        augmentation()(data, training)


def test_an_image_with_other_channels_is_refused():
    data = batch_of(random_images(2, channels=1), [0])
    with pytest.raises(UserInputError, match='have 1 channels .* 3 numbers'):
        augmentation()(data)


@pytest.mark.parametrize('shape', [(32, 24), (24, 32)])
def test_a_crop_larger_than_the_image_is_refused(shape):
    data = batch_of(random_images(2, *shape), [0])
    message = 'crop_size is 40, 8 pixels more .* set a smaller one'
    with pytest.raises(UserInputError, match=message):
        augmentation(crop_size=40)(data, True)


def test_pinned_images_would_fill_the_memory(monkeypatch):
    data = repeated(1)
    pinned = SimpleNamespace(
        is_pinned=lambda: True, data_ptr=data['images'].data_ptr
    )
    with pytest.raises(UserInputError, match='set pin_memory=False'):
        augmentation()(dict(data, images=pinned))
