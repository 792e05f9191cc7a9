"""Crop, flip and normalise on the device, the images of which live there."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor
from torch.nn import functional as F

from sb_mm.arguments import check_number
from sb_mm.errors import UserInputError
from sb_mm.registry import MODELS


@MODELS.register_module()
class OnDeviceAugmentation(BaseDataPreprocessor):
    """Cut a batch out of images that stay on the device as 8 bit.

    Does for every image on its own what mmpretrain's ``RandomCrop`` (with
    ``padding``), ``RandomFlip`` and ``ClsDataPreprocessor`` do, with the same
    distribution. The loader only draws indices, see
    :class:`~sb_mm.datasets.indexed_images.IndexedImages`.

    Args:
        mean: Of each channel, 0 to 255.
        std: Of each channel.
        padding: Black pixels at each side before the crop.
        crop_size: Height and width of the random crop in pixels; None for
            those of the images.
        flip_prob: Probability of mirroring from left to right.
        to_rgb: Exchange the first and the third channel.
        channels_last: Give the batch to the network in that memory format.
        num_classes: Of ``ClsDataPreprocessor``; not used.
        batch_augments: The same; must be None.

    Raises:
        UserInputError: If an argument is out of its range, or a batch comes
            from another dataset or was pinned.

    Note:
        MMEngine seeds the device's generator alike in every process: with
        several, use ``sb_mm.EpochSeedHook``, else the same places of their
        batches are cropped and flipped alike.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        padding: int = 0,
        crop_size: int | None = None,
        flip_prob: float = 0.0,
        to_rgb: bool = False,
        channels_last: bool = False,
        num_classes: int | None = None,
        batch_augments: dict | None = None,
    ) -> None:
        super().__init__()
        check_number('padding', padding, 0, integer=True)
        if crop_size is not None:
            check_number('crop_size', crop_size, 1, integer=True)
        check_number('flip_prob', flip_prob, 0, 1)
        for value in std:
            check_number('std', value, 0, open_low=True)
        if batch_augments is not None:
            raise UserInputError(
                'OnDeviceAugmentation has no batch_augments: for Mixup and '
                "its like, use mmpretrain's ClsDataPreprocessor and datasets."
            )
        self.padding = padding
        self._border = [0, 0] + 4 * [padding]  # for F.pad
        self.crop_size = crop_size
        self.flip_prob = flip_prob
        self.to_rgb = to_rgb
        self.channels_last = channels_last
        self.register_buffer('mean', torch.tensor(mean).float(), False)
        self.register_buffer('std', torch.tensor(std).float(), False)
        self._check_channels(len(mean))
        # By address and device: a dataset's images, which keeps the address
        # theirs, their padded copy and the labels.
        self._stores: dict[tuple, tuple[Tensor, ...]] = {}

    def forward(self, data: dict, training: bool = False) -> dict:
        """Return what mmpretrain's ``ImageClassifier`` takes.

        Args:
            data: A batch of ``IndexedImages``, or, to test or infer, one of
                the host's: ``inputs``, images ``(C, H, W)`` of one size, and
                ``data_samples``.
            training: Whether to crop and flip at random.

        Returns:
            ``inputs`` ``(B, C, H, W)``, float32, and ``data_samples``: in
            training one sample with all labels, which the losses concatenate
            anyway, else one for each image.
        """
        if 'images' in data:
            images, samples = self._indexed(data, training)
        elif training:
            raise UserInputError(
                'OnDeviceAugmentation needs batches of indices: wrap the '
                "dataset of the loader in dict(type='sb_mm.IndexedImages')."
            )
        else:
            images = torch.stack([*data['inputs']]).to(self.device)
            images = images.movedim(1, -1)
            samples = self.cast_data(data.get('data_samples'))
        if self.to_rgb:
            images = images.flip(-1)
        # A view in channels_last format.
        inputs = ((images.float() - self.mean) / self.std).movedim(-1, 1)
        inputs = inputs if self.channels_last else inputs.contiguous()
        return dict(inputs=inputs, data_samples=samples)

    def _indexed(self, data: dict, training: bool) -> tuple[Tensor, list]:
        from mmpretrain.structures import DataSample

        padded, labels = self._store(data)
        indices = data['indices'].to(self.device, non_blocking=True)
        labels = labels[indices]
        parts = [labels] if training else labels.split(1)
        samples = [DataSample().set_gt_label(part) for part in parts]
        return self._cut(padded, indices, training), samples

    def _cut(self, padded: Tensor, indices: Tensor, random: bool) -> Tensor:
        """Return windows ``(B, h, w, C)`` of the padded images."""
        if not random:
            return F.pad(padded[indices], [-side for side in self._border])
        count = len(indices)
        flip = torch.rand(count, 1, device=self.device) < self.flip_prob
        rows, columns = (self._crop(n, count) for n in padded.shape[1:3])
        columns = torch.where(flip, columns.flip(1), columns)
        return padded[
            indices[:, None, None], rows[:, :, None], columns[:, None]
        ]

    def _crop(self, side: int, count: int) -> Tensor:
        """Draw the rows or the columns of windows, ``(B, h)``."""
        size = self.crop_size or side - 2 * self.padding
        if size > side:
            raise UserInputError(
                f'crop_size is {size}, {size - side} pixels more than the '
                'images have with their padding: set a smaller one.'
            )
        device = self.device
        offsets = torch.randint(side - size + 1, (count, 1), device=device)
        return offsets + torch.arange(size, device=device)

    def _store(self, data: dict) -> tuple[Tensor, Tensor]:
        """Return the padded images and the labels on the device."""
        images, labels = data['images'], data['labels']
        key = images.data_ptr(), self.device
        if key in self._stores:
            return self._stores[key][1:]
        # A copy for each batch, none of which would ever be given back.
        if images.is_pinned():
            raise UserInputError(
                'sb_mm.IndexedImages must not be pinned: set '
                'pin_memory=False in its loader.'
            )
        self._check_channels(images.shape[-1])
        padded = F.pad(images.to(self.device), self._border)
        self._stores[key] = images, padded, labels.to(self.device)
        return self._stores[key][1:]

    def _check_channels(self, channels: int) -> None:
        if not len(self.mean) == len(self.std) == channels:
            raise UserInputError(
                f'mean has {len(self.mean)} numbers and std {len(self.std)}, '
                f'for {channels} channels: give one for each channel.'
            )
