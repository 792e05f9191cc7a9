"""Images as one tensor, of which a loader hands out only indices."""

import copy

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, pseudo_collate
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

    def __init__(self, images=IMAGES, **kwargs):
        self.images = images
        super().__init__(**kwargs)

    def load_data_list(self):
        pairs = zip(self.images, LABELS, strict=True)
        return [dict(img=image, gt_label=label) for image, label in pairs]


def indexed(count=None, **kwargs):
    return IndexedImages(dict(type=Images, **kwargs), count)


def test_every_batch_is_indices_into_the_same_two_tensors():
    seen = []

    def note(sample):
        seen.append(sample['gt_label'])
        return sample

    config = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='sb_mm.whole_batch'),
        dataset=dict(
            type='sb_mm.IndexedImages',
            dataset=dict(type=Images, pipeline=[note]),
        ),
    )
    loader = Runner.build_dataloader(config, seed=0)
    assert loader.dataset.metainfo['classes'] == tuple('abcdefghij')
    for _ in range(2):
        batches = list(loader)
        assert [len(batch['indices']) for batch in batches] == [4, 4, 2]
        order = torch.cat([batch['indices'] for batch in batches])
        assert sorted(order.tolist()) == list(range(COUNT))
    # Each image went through the pipeline once.
    assert seen == LABELS
    for batch in batches:
        assert set(batch) == {'images', 'labels', 'indices'}
        assert batch['images'] is batches[0]['images']
        assert batch['labels'] is batches[0]['labels']
    np.testing.assert_array_equal(batches[0]['images'], IMAGES)
    assert batches[0]['images'].dtype == torch.uint8
    assert batches[0]['labels'].tolist() == LABELS


def test_grey_images_get_a_channel():
    batch = indexed(images=IMAGES[..., 0])[7]
    assert batch['indices'].tolist() == [7]
    np.testing.assert_array_equal(batch['images'], IMAGES[..., :1])


@pytest.mark.parametrize(
    ('count', 'places'),
    [(1, [0]), (3, [0, 3, 6]), (10, range(10))],
)
def test_so_many_images_are_spread_over_the_dataset(count, places):
    part = indexed(count)
    assert len(part) == count
    assert part[0]['labels'].tolist() == [LABELS[i] for i in places]
    np.testing.assert_array_equal(part[0]['images'], IMAGES[[*places]])


@pytest.mark.parametrize('count', [0, 11, 2.5, [1, 2]])
def test_a_number_of_images_that_are_not_there_is_refused(count):
    with pytest.raises(UserInputError, match=r'indices must be .*\[1, 10\]'):
        indexed(count)


def test_a_copied_batch_shares_the_dataset():
    """A copy of all images for each would fill the memory."""
    batch = indexed()[2]
    copied = copy.deepcopy(batch)
    assert copied['images'] is batch['images']
    assert copied['labels'] is batch['labels']
    batch['indices'].zero_()
    assert copied['indices'].tolist() == [2]
    with pytest.raises(UserInputError, match="has no 'inputs'.*OnDeviceAugm"):
        copied['inputs']


def test_a_batch_that_is_collated_says_what_it_needs():
    batches = DataLoader(indexed(), 4, collate_fn=pseudo_collate)
    with pytest.raises(UserInputError, match=r'sb_mm\.whole_batch'):
        next(iter(batches))


def test_a_loader_with_workers_says_how_to_do_without():
    batches = DataLoader(indexed(), 4, num_workers=1, collate_fn=whole_batch)
    batches = iter(batches)
    # The worker's traceback is left out.
    with pytest.raises(UserInputError, match=r'^sb_mm.* set num_workers=0'):
        next(batches)
    # Left to the garbage collector, it waits for five seconds.
    batches._shutdown_workers()


@pytest.mark.parametrize(
    ('index', 'image', 'message'),
    [
        (3, IMAGES[0, :5], r'3 is of shape \(5, 4, 3\) .* one size \(\(6, 4'),
        (9, IMAGES[0, ..., 0], r'Image 9 is of shape \(6, 4, 1\) .* resize'),
        (0, IMAGES[0] > 9, 'Image 0 .* type bool, .* needs 8-bit'),
    ],
    ids=['size', 'channels', 'first'],
)
def test_an_image_unlike_the_others_is_named(index, image, message):
    images = [*IMAGES[:index], image, *IMAGES[index + 1 :]]
    with pytest.raises(UserInputError, match=message):
        indexed(images=images).full_init()


@pytest.mark.parametrize('key', ['img', 'gt_label'])
def test_a_pipeline_that_packs_is_refused(key):
    dataset = indexed(pipeline=[lambda s: {k: s[k] for k in s.keys() - {key}}])
    with pytest.raises(UserInputError, match=f'gives no .*{key}.*PackInp'):
        dataset.full_init()
