"""Small images as one tensor, of which a loader hands out only indices."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from sb_mm.arguments import check_number
from sb_mm.errors import UserInputError
from sb_mm.registry import DATASETS, FUNCTIONS


@DATASETS.register_module()
class IndexedImages(Dataset):
    """A dataset of equal images, all in memory, read by index.

    For :class:`~sb_mm.models.data_preprocessors.OnDeviceAugmentation`, which
    keeps the images on the device and cuts the batches out there. A batch
    is a dict of ``images`` ``(N, H, W, C)``, uint8, and ``labels`` ``(N,)``
    of the whole dataset, always the same two tensors, and ``indices``
    ``(B,)``. The loader needs ``num_workers=0`` and
    ``collate_fn=dict(type='sb_mm.whole_batch')``.

    Args:
        dataset: Config of the dataset, whose samples have ``img`` ``(H, W)``
            or ``(H, W, C)``, uint8, and ``gt_label``. Its pipeline runs once
            for each image: reading and resizing belong there, random
            transforms do not.
        indices: How many images, evenly spread over the dataset, so that
            folders sorted by class give some of each; None for all.

    Raises:
        UserInputError: If an image differs in size or type from the first,
            the pipeline leaves no image or no label, there are fewer images
            than ``indices``, or a loader's worker reads the data.
    """

    def __init__(self, dataset: dict, indices: int | None = None) -> None:
        self.dataset = MMENGINE_DATASETS.build(dataset)
        total = len(self.dataset)
        if indices is not None:
            check_number('indices', indices, 1, total, integer=True)
        count = total if indices is None else indices
        self._places = [i * total // count for i in range(count)]
        self._tensors: tuple[Tensor, Tensor] | None = None

    @property
    def metainfo(self) -> dict:
        """What is known of the data, such as ``classes``."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Load the images now."""
        if self._tensors is None:
            self._tensors = self._load()

    def _load(self) -> tuple[Tensor, Tensor]:
        arrays: list[np.ndarray] = []
        labels = []
        for index in self._places:
            sample = self.dataset[index]
            if not {'img', 'gt_label'} <= sample.keys():
                raise UserInputError(
                    'The dataset of sb_mm.IndexedImages gives no img or no '
                    'gt_label: let its pipeline read and resize the images '
                    'and nothing else (no PackInputs).'
                )
            arrays.append(np.asarray(sample['img']))
            _check_image(index, arrays[-1], arrays[0])
            labels.append(int(sample['gt_label']))
        images = torch.from_numpy(np.stack(arrays))
        images = images[..., None] if images.ndim == 3 else images
        return images, torch.tensor(labels)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict:
        """Return a batch, see above; PyTorch's loader asks for it so."""
        if get_worker_info() is not None:
            raise UserInputError(
                'sb_mm.IndexedImages must be read by the training process '
                'itself: set num_workers=0 in its loader.'
            )
        self.full_init()
        images, labels = self._tensors
        indices = torch.tensor(indices)
        return _Batch(images=images, labels=labels, indices=indices)


class _Batch(dict):
    """A batch that says what it is for where something else is expected."""

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


def _check_image(index: int, image: np.ndarray, first: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.shape != first.shape:
        raise UserInputError(
            f'Image {index} is of shape {image.shape} and type '
            f'{image.dtype}, and sb_mm.IndexedImages needs 8-bit images '
            f'of one size ({first.shape} here): resize them in the pipeline '
            'of its dataset.'
        )


@FUNCTIONS.register_module()
def whole_batch(batch: dict) -> dict:
    """Leave a batch of :class:`IndexedImages` as it is."""
    return batch
