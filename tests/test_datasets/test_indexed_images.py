"""Images as one tensor, of which a loader hands out only indices."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.registry import DATASETS, FUNCTIONS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from sb_mm.datasets.indexed_images import IndexedImages, whole_batch
from sb_mm.errors import UserInputError

COUNT = 10
IMAGES = np.random.default_rng(0).integers(
    0, 256, (COUNT, 6, 4, 3), dtype=np.uint8
)
LABELS = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]


class Images(BaseDataset):
    """Any dataset whose samples have an image and a label."""

    METAINFO = dict(classes=tuple('abcdefghij'))

    def __init__(self, images=IMAGES, changes=(), **kwargs):
        self.images = images
        self.changes = dict(changes)
        super().__init__(**kwargs)

    def load_data_list(self):
        samples = [
            dict(img=image, gt_label=label)
            for image, label in zip(self.images, LABELS, strict=False)
        ]
        for index, image in self.changes.items():
            samples[index]['img'] = image
        return samples


class Counted:
    """A transform that notes which label it saw."""

    def __init__(self):
        self.seen = []

    def __call__(self, sample):
        self.seen.append(sample['gt_label'])
        return sample


def drop(key):
    """Return a transform that loses an entry."""
    return lambda sample: {k: v for k, v in sample.items() if k != key}


def indexed(**kwargs):
    return IndexedImages(dict(type=Images, **kwargs))


def loader(dataset=None, seed=0, **kwargs):
    """Build a loader as the runner does."""
    config = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='sb_mm.whole_batch'),
        dataset=dataset
        or dict(type='sb_mm.IndexedImages', dataset=dict(type=Images)),
    )
    return Runner.build_dataloader(config | kwargs, seed=seed)


def order(batches):
    return torch.cat([batch['indices'] for batch in batches]).tolist()


# What a loader hands out


def test_every_batch_is_indices_into_the_same_two_tensors():
    batches = list(loader())
    assert [len(batch['indices']) for batch in batches] == [4, 4, 2]
    for batch in batches:
        assert set(batch) == {'images', 'labels', 'indices'}
        assert batch['images'] is batches[0]['images']
        assert batch['labels'] is batches[0]['labels']
        assert batch['indices'].dtype == torch.int64
    assert sorted(order(batches)) == list(range(COUNT))


def test_images_and_labels_are_those_of_the_data_set_in_its_order():
    batch = indexed()[0]
    assert batch['images'].dtype == torch.uint8
    np.testing.assert_array_equal(batch['images'], IMAGES)
    assert batch['labels'].tolist() == LABELS


def test_one_index_is_a_batch_of_one():
    assert indexed()[7]['indices'].tolist() == [7]


def test_grey_images_get_a_channel():
    batch = indexed(images=IMAGES[..., 0])[0]
    assert batch['images'].shape == (COUNT, 6, 4, 1)
    np.testing.assert_array_equal(batch['images'][..., 0], IMAGES[..., 0])


@pytest.mark.parametrize('seed', [0, 5])
def test_the_order_is_that_of_the_hosts_loader(seed):
    stock = loader(
        dict(type=Images), seed, collate_fn=dict(type='pseudo_collate')
    )
    ours = loader(seed=seed)
    for _ in range(2):
        expected = [label for b in stock for label in b['gt_label']]
        assert [LABELS[i] for i in order(ours)] == expected
        stock.sampler.set_epoch(1)
        ours.sampler.set_epoch(1)


def test_seed_and_epoch_change_the_order():
    first, other, later = loader(), loader(seed=5), loader()
    later.sampler.set_epoch(1)
    orders = {tuple(order(part)) for part in (first, other, later)}
    assert len(orders) == 3
    assert order(first) == order(loader())


def test_without_shuffling_the_order_is_that_of_the_files():
    plain = loader(sampler=dict(type='DefaultSampler', shuffle=False))
    assert order(plain) == list(range(COUNT))


def test_an_incomplete_batch_may_be_dropped():
    assert len(loader()) == 3
    short = loader(drop_last=True)
    assert len(short) == 2
    assert [len(batch['indices']) for batch in short] == [4, 4]


@pytest.mark.parametrize('indices', [3, [8, 2, 5]])
def test_a_part_of_the_data_set_is_numbered_from_0(indices):
    part = indexed(indices=indices)
    chosen = range(3) if indices == 3 else indices
    assert len(part) == 3
    batch = part.__getitems__([0, 1, 2])
    assert batch['labels'].tolist() == [LABELS[i] for i in chosen]
    np.testing.assert_array_equal(batch['images'], IMAGES[list(chosen)])


def test_the_names_of_the_classes_are_known():
    assert indexed().metainfo['classes'] == tuple('abcdefghij')


def test_both_names_resolve_from_any_scope():
    built = DATASETS.build(
        dict(type='sb_mm.IndexedImages', dataset=dict(type=Images))
    )
    assert isinstance(built, IndexedImages)
    assert FUNCTIONS.get('sb_mm.whole_batch') is whole_batch


# When it reads


def test_each_image_goes_through_the_pipeline_once():
    transform = Counted()
    dataset = indexed(pipeline=[transform])
    batches = loader(dataset=dataset)
    assert len(dataset) == COUNT
    assert transform.seen == []
    for _ in range(2):
        list(batches)
    dataset.full_init()
    assert transform.seen == LABELS


@pytest.mark.parametrize('loaded', [False, True])
def test_it_survives_pickling(loaded):
    dataset = indexed()
    if loaded:
        dataset.full_init()
    copy = pickle.loads(pickle.dumps(dataset))
    batch = copy.__getitems__([1, 2])
    assert batch['labels'].tolist() == LABELS
    assert batch['images'].equal(dataset[0]['images'])


def test_a_copied_batch_shares_the_data_set():
    """A copy of all images for each would fill the memory."""
    batch = indexed()[2]
    copied = copy.deepcopy(batch)
    assert copied['images'] is batch['images']
    assert copied['labels'] is batch['labels']
    batch['indices'].zero_()
    assert copied['indices'].tolist() == [2]
    with pytest.raises(UserInputError, match="has no 'inputs'"):
        copied['inputs']


def test_a_batch_that_goes_elsewhere_says_what_it_needs():
    # To MMEngine's own collation, and to mmpretrain's own preprocessor.
    batches = DataLoader(indexed(), 4, collate_fn=pseudo_collate)
    with pytest.raises(UserInputError, match=r'sb_mm\.whole_batch'):
        next(iter(batches))
    with pytest.raises(UserInputError, match="no 'inputs'.*OnDeviceAugm"):
        indexed()[0]['inputs']


def test_a_loader_with_workers_says_how_to_do_without():
    batches = DataLoader(indexed(), 4, num_workers=1, collate_fn=whole_batch)
    batches = iter(batches)
    with pytest.raises(UserInputError, match='set num_workers=0'):
        next(batches)
    # Left to the garbage collector, it waits for five seconds.
    batches._shutdown_workers()


# What it refuses


@pytest.mark.parametrize(
    ('index', 'image', 'message'),
    [
        (
            3,
            IMAGES[0, :5],
            r'Image 3 is of shape \(5, 4, 3\) .* one size \(\(6, 4, 3\)',
        ),
        (9, IMAGES[0, ..., 0], r'Image 9 is of shape \(6, 4\) .* resize'),
        (2, IMAGES[0].astype(np.float32), 'Image 2 .* type float32'),
        (0, IMAGES[0] > 9, 'Image 0 .* type bool, .* needs 8-bit'),
    ],
    ids=['size', 'channels', 'float', 'first'],
)
def test_an_image_unlike_the_others_is_named(index, image, message):
    dataset = indexed(changes={index: image})
    with pytest.raises(UserInputError, match=message):
        dataset.full_init()


@pytest.mark.parametrize('key', ['img', 'gt_label'])
def test_a_pipeline_that_packs_is_refused(key):
    dataset = indexed(pipeline=[drop(key)])
    with pytest.raises(UserInputError, match=rf'gives no {key}: .*PackInp'):
        dataset.full_init()
