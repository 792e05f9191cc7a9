"""CIFAR-10 in three files of losslessly packed images."""

import os.path as osp
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from mmengine.dataset import BaseDataset

from sb_mm.errors import UserInputError, first_few, first_line
from sb_mm.registry import DATASETS

_PARTS = dict(train=('train-0.npz', 'train-1.npz'), test=('test.npz',))
_SHAPE = (32, 32, 3)


@DATASETS.register_module()
class PackedCIFAR10(BaseDataset):
    """CIFAR-10 from ``train-0.npz``, ``train-1.npz`` and ``test.npz``.

    It takes the place of mmpretrain's ``CIFAR10`` in a config: only ``type``
    and ``data_root`` change. A sample is ``img``, (32, 32, 3) in RGB order,
    0 to 255 in uint8, and ``gt_label``, 0 to 9. The order of the images is
    that of the files.

    Each file holds N images in four arrays: ``webp``, the lossless WebP
    files one after another (uint8), ``offsets``, N + 1 positions in bytes
    where they begin and end, ``labels`` and ``classes``, the ten names.

    All images of the split are decoded when the data are loaded, into
    3 KB each (150 MB for ``train``), which the workers of a loader share.

    Args:
        data_root: Folder of the files.
        split: ``'train'`` or ``'test'``.
        metainfo: Other names for the ten ``classes``, and whatever else the
            model shall know of the data.
        download: For the configs of ``CIFAR10``; nothing is downloaded.
        data_prefix: Folder of the files below ``data_root``.
        serialize_data: Keep the samples as MMEngine does, pickled one by
            one; it takes longer and saves nothing.
        classes: Short for ``metainfo=dict(classes=...)``.
        kwargs: Those of MMEngine's ``BaseDataset``: ``pipeline``,
            ``indices``, ``test_mode``, ``lazy_init``, ...

    Raises:
        UserInputError: An argument is out of its range, or a file is missing
            or damaged; the latter when the data are loaded (at once unless
            ``lazy_init``).

    Example:
        >>> train_dataset = dict(
        ...     type='sb_mm.PackedCIFAR10',
        ...     data_root='data/cifar10_packed',
        ...     split='train',
        ...     pipeline=train_pipeline,
        ... )
    """

    # The official order, which is that of mmpretrain too.
    METAINFO = dict(
        classes=(
            'airplane',
            'automobile',
            'bird',
            'cat',
            'deer',
            'dog',
            'frog',
            'horse',
            'ship',
            'truck',
        )
    )

    def __init__(
        self,
        data_root: str = '',
        split: str = 'train',
        metainfo: Mapping | None = None,
        download: bool = False,
        data_prefix: str = '',
        *,
        serialize_data: bool = False,
        classes: str | Sequence[str] | None = None,
        **kwargs,
    ) -> None:
        if split not in _PARTS:
            raise UserInputError(
                f"split must be 'train' or 'test', but got {split!r}."
            )
        self.split = split
        given = {} if classes is None else dict(classes=classes)
        super().__init__(
            metainfo={**given, **(metainfo or {})},
            data_root=data_root,
            data_prefix=dict(root=data_prefix),
            serialize_data=serialize_data,
            **kwargs,
        )

    @classmethod
    def _load_metainfo(cls, metainfo: Mapping | None = None) -> dict:
        loaded = super()._load_metainfo(metainfo)
        names, official = loaded['classes'], cls.METAINFO['classes']
        if isinstance(names, str) or len(names) != len(official):
            raise UserInputError(
                f'metainfo.classes of PackedCIFAR10 is {names!r}: give '
                f'{len(official)} names or leave it out.'
            )
        return loaded

    def load_data_list(self) -> list[dict]:
        """Read and decode the images of the split.

        Returns:
            ``img`` and ``gt_label`` of each image. Those of one file are
            views of one array.

        Raises:
            UserInputError: Names the files that are missing or damaged.
        """
        samples = []
        for path in self._find_parts():
            webp, offsets, labels = _read_part(path)
            images = _decode(path, webp, offsets)
            samples += [
                dict(img=image, gt_label=label)
                for image, label in zip(images, labels.tolist(), strict=True)
            ]
        return samples

    def _find_parts(self) -> list[str]:
        folder = self.data_prefix['root']
        paths = [osp.join(folder, name) for name in _PARTS[self.split]]
        if missing := [path for path in paths if not osp.isfile(path)]:
            raise UserInputError(
                f'{first_few(missing)} not found: set data_root to the folder '
                'that holds train-0.npz, train-1.npz and test.npz.'
            )
        return paths

    def check_images(self) -> None:
        """Decode every image, if that is still to be done.

        Raises:
            UserInputError: Names the files that are missing or damaged.
        """
        self.full_init()

    # What mmpretrain's wrappers, hooks and tools ask its own datasets for.

    @property
    def CLASSES(self) -> Sequence[str]:  # noqa: N802
        """Names of the classes, in the order of their labels."""
        return self._metainfo['classes']

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the label of one image, as a list."""
        return [self.get_data_info(idx)['gt_label']]

    def get_gt_labels(self) -> np.ndarray:
        """Return the labels of all images, (N,)."""
        return np.array([self.get_cat_ids(i)[0] for i in range(len(self))])


def _read_part(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the WebP bytes, N + 1 offsets and N labels of a file."""
    try:
        with np.load(path, allow_pickle=False) as part:
            classes = part['classes'].tolist()
            webp = part['webp'].astype(np.uint8, casting='safe')
            offsets, labels = (
                part[name].astype(np.int64, casting='same_kind')
                for name in ('offsets', 'labels')
            )
    except Exception as error:  # NumPy's reader raises many types
        raise UserInputError(
            f'{path} is damaged or no packed CIFAR-10 ({first_line(error)}): '
            'copy it again.'
        ) from error
    if fault := _fault(classes, webp, offsets, labels):
        raise UserInputError(f'{path} {fault}: copy it again.')
    return webp, offsets, labels


def _fault(
    classes: list, webp: np.ndarray, offsets: np.ndarray, labels: np.ndarray
) -> str | None:
    """Say what contradicts CIFAR-10, or the other arrays."""
    official = PackedCIFAR10.METAINFO['classes']
    if classes != list(official):
        return (
            f'has the classes {classes}, not those of CIFAR-10 in the '
            f'official order ({first_few(official)})'
        )
    if not labels.size or offsets.shape != (labels.size + 1,):
        return (
            f'has {offsets.size} offsets for {labels.size} labels instead of '
            'one more than labels'
        )
    ends = (offsets[0], offsets[-1])
    if ends != (0, webp.size) or np.diff(offsets).min() < 1:
        return f'has offsets that do not divide its {webp.size} bytes'
    wrong = np.flatnonzero((labels < 0) | (labels >= len(official)))
    if wrong.size:
        index = wrong[0]
        return f'has the label {labels[index]} at image {index}, not 0 to 9'
    return None


def _decode(path: str, webp: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the RGB images, (N, 32, 32, 3) in uint8."""
    images = np.empty((len(offsets) - 1, *_SHAPE), np.uint8)
    for index, image in enumerate(images):
        data = webp[offsets[index] : offsets[index + 1]]
        # As it is: a grey or transparent image is none of CIFAR-10.
        decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if decoded is None or decoded.shape != _SHAPE:
            raise UserInputError(
                f'Image {index} of {path} is not a colour image of 32x32 '
                'pixels: copy the file again.'
            )
        image[:] = decoded[..., ::-1]  # from OpenCV's BGR
    return images
