"""Small images as one tensor, of which a loader hands out only indices."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch.utils.data import Dataset, get_worker_info

from sb_mm.arguments import check_number
from sb_mm.errors import UserInputError
from sb_mm.registry import DATASETS, FUNCTIONS


@DATASETS.register_module()
class IndexedImages(Dataset):
    """A dataset in memory, whose batches are indices.

    A batch, for ``sb_mm.OnDeviceAugmentation``, is a dict of ``images``
    ``(N, H, W, C)``, uint8, and ``labels`` ``(N,)`` of the whole dataset,
    always the same two tensors, and ``indices`` ``(B,)``. The loader needs
    ``num_workers=0`` and ``collate_fn=dict(type='sb_mm.whole_batch')``.

    Args:
        dataset: Config of the dataset, whose samples have ``img`` ``(H, W)``
            or ``(H, W, C)``, uint8, and ``gt_label``. Its pipeline runs once
            for each image: reading and resizing belong there, random
            transforms do not.
        indices: How many images, evenly spread over the dataset, so that
            folders sorted by class give some of each; None for all.

    Raises:
        UserInputError: If images differ in size or are not of 8 bit, the
            pipeline leaves no image or no label, there are fewer images than
            ``indices``, or a dataloader worker reads the data.
    """

    def __init__(self, dataset: dict, indices: int | None = None) -> None:
        self.dataset = MMENGINE_DATASETS.build(dataset)
        total = len(self.dataset)
        count = total if indices is None else indices
        check_number('indices', count, 1, total, integer=True)
        self._places = [i * total // count for i in range(count)]
        self._whole: dict = {}

    @property
    def metainfo(self) -> dict:
        """What is known of the data, such as ``classes``."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Load the images, unless they are loaded."""
        if self._whole:
            return
        images: list[np.ndarray] = []
        labels = []
        for index in self._places:
            sample = self.dataset[index]
            if not {'img', 'gt_label'} <= sample.keys():
                raise UserInputError(
                    'The dataset of sb_mm.IndexedImages gives no img or no '
                    'gt_label: let its pipeline read and resize the images '
                    'and nothing else (no PackInputs).'
                )
            images.append(np.atleast_3d(sample['img']))
            labels.append(int(sample['gt_label']))
            shape, kind, first = images[-1].shape, images[-1].dtype, images[0]
            if kind != np.uint8 or shape != first.shape:
                raise UserInputError(
                    f'Image {index} is of shape {shape} and type {kind}, and '
                    'sb_mm.IndexedImages needs 8-bit images of one size '
                    f'({first.shape} here): resize them in its pipeline.'
                )
        images = torch.from_numpy(np.stack(images))
        self._whole = dict(images=images, labels=torch.tensor(labels))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict:
        """Return a batch, as PyTorch's loader asks for it."""
        if get_worker_info() is not None:
            raise UserInputError(
                'sb_mm.IndexedImages must be read by the training process '
                'itself: set num_workers=0 in its loader.'
            )
        self.full_init()
        return _Batch(self._whole, indices=torch.tensor(indices))


class _Batch(dict):
    def __deepcopy__(self, memo: dict) -> '_Batch':
        """Copy the batch, not the dataset, as hooks do that keep batches."""
        return _Batch(self, indices=self['indices'].clone())

    def __missing__(self, key: object) -> None:
        raise UserInputError(
            f'A batch of sb_mm.IndexedImages has no {key!r}: give its '
            "loader collate_fn=dict(type='sb_mm.whole_batch'), the model "
            'sb_mm.OnDeviceAugmentation as data_preprocessor, and what '
            "draws or exports single images the host's own dataset."
        )


@FUNCTIONS.register_module()
def whole_batch(batch: dict) -> dict:
    """Leave a batch of :class:`IndexedImages` as it is."""
    return batch
