"""PASCAL VOC, and anybody's data in its layout, checked when it is loaded."""

import colorsys
import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from mmdet.datasets import VOCDataset, XMLDataset
from mmengine.logging import print_log
from PIL import Image

from sb_mm.errors import UserInputError, first_few
from sb_mm.registry import DATASETS

from .annotation import (
    AnnotatedObject,
    FileFault,
    raise_faults,
    read_annotation,
)

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')

# second column of the devkit's lists of one class, e.g. `000005 -1`
_LIST_LABEL = re.compile(r'\s+-?[01]$')
_EXIF_ORIENTATION = 0x0112


@DATASETS.register_module()
class VOCDevkitDataset(XMLDataset):
    """PASCAL VOC, or a user's own data in the same layout.

    Below ``data_prefix['sub_data_root']`` (relative to ``data_root``) lie
    ``Annotations/<name>.xml`` and ``JPEGImages/<name>.jpg`` (or .jpeg or
    .png, in any case of letters); ``ann_file`` lists the names.

    What differs from mmdet's ``VOCDataset``: everything that can be wrong
    with the files is reported in one sentence when they are loaded, boxes
    are clipped to the image, and the metainfo holds no ``dataset_type``,
    so that VOC2007 and VOC2012 can be concatenated. Boxes become integers,
    less one, as in mmdet: ``bbox`` is (x1, y1, x2, y2) in pixels, the first
    pixel is 0.

    Args:
        skip_unknown_classes: Leave out objects whose class is not among
            ``metainfo['classes']``; by default they are an error, as they
            are mostly misspelt names.
        kwargs: Those of mmdet's ``XMLDataset``: ``data_root``,
            ``ann_file``, ``data_prefix``, ``metainfo`` (``classes`` and,
            optionally, ``palette``), ``filter_cfg``, ``pipeline``, ...

    Raises:
        UserInputError: The files are missing or cannot be used; raised when
            the annotations are loaded (at once unless ``lazy_init``).

    Example:
        >>> train_dataset = dict(
        ...     type='sb_mm.VOCDevkitDataset',
        ...     data_root='data/my_devkit/',
        ...     ann_file='ImageSets/Main/train.txt',
        ...     metainfo=dict(classes=('cat', 'dog')),
        ...     filter_cfg=dict(filter_empty_gt=True),
        ... )
    """

    METAINFO = VOCDataset.METAINFO

    def __init__(
        self, *, skip_unknown_classes: bool = False, **kwargs: Any
    ) -> None:
        self.skip_unknown_classes = skip_unknown_classes
        kwargs.setdefault('data_prefix', dict(sub_data_root=''))
        super().__init__(**kwargs)

    @classmethod
    def _load_metainfo(cls, metainfo: Mapping | None = None) -> dict:
        loaded = super()._load_metainfo(metainfo)
        loaded['classes'] = _checked_classes(loaded['classes'])
        own_classes = loaded['classes'] != tuple(cls.METAINFO['classes'])
        if own_classes and 'palette' not in metainfo:
            loaded['palette'] = make_palette(len(loaded['classes']))
        return loaded

    def load_data_list(self) -> list[dict]:
        """Find and reads all annotations.

        Returns:
            One dict an image: ``img_id``, ``img_path``, ``xml_path``,
            ``width`` and ``height`` in pixels, ``instances``.

        Raises:
            UserInputError: The files are missing or cannot be used.
        """
        self._check_layout()
        classes = self._metainfo['classes']
        self.cat2label = {name: label for label, name in enumerate(classes)}
        data_list, faults, degenerate = [], [], {}
        for files in self._find_files():
            try:
                info = self.parse_data_info(files)
            except FileFault as fault:
                faults.append(fault)
                continue
            if count := info.pop('num_degenerate'):
                degenerate[info['xml_path']] = count
            data_list.append(info)
        if faults:
            raise_faults(faults)
        _warn_degenerate(degenerate)
        return data_list

    def parse_data_info(self, img_info: dict) -> dict:
        """Read one annotation.

        Args:
            img_info: ``img_id``, ``img_path`` and ``xml_path``.

        Returns:
            The same with ``width`` and ``height`` in pixels, ``instances``
            and ``num_degenerate``, the number of boxes left out.

        Raises:
            FileFault: The annotation cannot be used, or it gives no size and
                the image cannot be read.
        """
        path = img_info['xml_path']
        size, objects = read_annotation(path)
        known = [obj for obj in objects if self._is_known(obj.name, path)]
        if size is None or any(_sticks_out(obj.box, size) for obj in known):
            # Annotation programs write wrong sizes: do not clip to one.
            size = image_size(img_info['img_path'])
        width, height = size
        boxes = [_to_bbox(obj.box, width, height) for obj in known]
        instances = [
            self._to_instance(obj, bbox)
            for obj, bbox in zip(known, boxes, strict=True)
            if bbox[0] < bbox[2] and bbox[1] < bbox[3]
        ]
        return dict(
            img_info,
            width=width,
            height=height,
            instances=instances,
            num_degenerate=len(boxes) - len(instances),
        )

    def filter_data(self) -> list[dict]:
        """Apply ``filter_cfg`` as mmdet does.

        Raises:
            UserInputError: No image is left.
        """
        kept = super().filter_data()
        if not kept:
            raise UserInputError(
                f'None of the {len(self.data_list)} images listed in '
                f'{self.ann_file} passes filter_cfg={self.filter_cfg}: '
                'annotate objects or change filter_cfg.'
            )
        return kept

    def check_images(self) -> None:
        """Check that every image is whole, and warns of wrong sizes.

        Reads the head and the tail of each file; decodes only those that
        do not end as they should. The size in an annotation is used for
        nothing else than ``filter_cfg``: images of another size are
        counted in a warning.

        Raises:
            UserInputError: Images cannot be read.
        """
        faults, others = [], []
        for info in (self.get_data_info(i) for i in range(len(self))):
            try:
                size = _whole_image_size(info['img_path'])
            except FileFault as fault:
                faults.append(fault)
                continue
            if size != (info['width'], info['height']):
                others.append(info['xml_path'])
        if faults:
            raise_faults(faults)
        if others:
            _warn(
                f'{len(others)} annotations give another size than their '
                f'image has: {first_few(others)}.'
            )

    def _folders(self) -> tuple[str, str]:
        root = self.sub_data_root
        return (
            os.path.join(root, self.ann_subdir),
            os.path.join(root, self.img_subdir),
        )

    def _check_layout(self) -> None:
        backend = (self.backend_args or {}).get('backend', 'local')
        if backend != 'local':
            raise UserInputError(
                f"backend_args has backend '{backend}', but "
                'VOCDevkitDataset reads local files only: leave it out.'
            )
        folders = [path for path in self._folders() if not os.path.isdir(path)]
        is_list = os.path.isfile(self.ann_file)
        lists = [] if is_list else [self.ann_file or 'ann_file']
        if missing := lists + folders:
            raise UserInputError(
                f'{first_few(missing)} not found: {self._remedy}.'
            )

    @property
    def _remedy(self) -> str:
        """How to get the files: from VOC's server, or from the user."""
        root = os.path.normpath(self.data_root or '.')
        year = os.path.basename(os.path.normpath(self.sub_data_root))
        own_classes = self._metainfo['classes'] != _VOC_CLASSES
        if own_classes or year not in ('VOC2007', 'VOC2012'):
            return (
                f'data_root {root} must hold {self.ann_file} (one image '
                f'name a line, without .jpg), {self._folders()[0]}/<name>.xml '
                f'and {self._folders()[1]}/<name>.jpg (or .jpeg, .png)'
            )
        return (
            f'run `python tools/prepare_voc.py --out {shlex.quote(root)}` or '
            'set data_root to the folder that holds VOC2007 and VOC2012'
        )

    def _find_files(self) -> list[dict]:
        ann_folder, img_folder = self._folders()
        annotations = _FileIndex(ann_folder, ('.xml',))
        images = _FileIndex(img_folder, IMAGE_SUFFIXES)
        files = []
        for line in _read_list(self.ann_file):
            whole = line in annotations or line in images
            name = line if whole else _LIST_LABEL.sub('', line)
            img_path, xml_path = images[name], annotations[name]
            files.append(
                dict(img_id=name, img_path=img_path, xml_path=xml_path)
            )
        self._check_found(files)
        return _without_repeats(files, self.ann_file)

    def _check_found(self, files: list[dict]) -> None:
        missing = []
        for item in files:
            lacks = [] if item['xml_path'] else ['annotation']
            lacks += [] if item['img_path'] else ['image']
            if lacks:
                missing.append(f'{item["img_id"]} (no {" and ".join(lacks)})')
        if missing:
            raise UserInputError(
                f'{len(missing)} of the {len(files)} names in {self.ann_file} '
                f'lack files, {first_few(missing)}: {self._remedy}.'
            )

    def _is_known(self, name: str, path: str) -> bool:
        known = name in self.cat2label
        if not known and not self.skip_unknown_classes:
            raise FileFault(
                path,
                f"has the class '{name}'",
                f'the classes given are {", ".join(self.cat2label)}; correct '
                "the name or change `classes` in the dataset's metainfo",
            )
        return known

    def _to_instance(self, obj: AnnotatedObject, bbox: list[int]) -> dict:
        shorter = min(bbox[2] - bbox[0], bbox[3] - bbox[1])
        ignore = obj.difficult or shorter < (self.bbox_min_size or 0)
        label = self.cat2label[obj.name]
        return dict(ignore_flag=int(ignore), bbox=bbox, bbox_label=label)


_VOC_CLASSES = tuple(VOCDataset.METAINFO['classes'])


class _FileIndex:
    """Finds files by their name without suffix.

    Each folder is listed once: a look-up a file and suffix is slow for
    16,551 images on a network drive.
    """

    def __init__(self, folder: str, suffixes: Sequence[str]) -> None:
        self._folder = folder
        self._suffixes = suffixes
        self._listed: dict[str, dict[str, str]] = {}

    def __getitem__(self, name: str) -> str | None:
        sub_folder, stem = os.path.split(name)
        if sub_folder not in self._listed:
            folder = os.path.join(self._folder, sub_folder)
            self._listed[sub_folder] = self._list(folder)
        return self._listed[sub_folder].get(stem)

    def __contains__(self, name: str) -> bool:
        return self[name] is not None

    def _list(self, folder: str) -> dict[str, str]:
        names = os.listdir(folder) if os.path.isdir(folder) else []
        found: dict[str, str] = {}
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in self._suffixes:
                found.setdefault(stem, os.path.join(folder, name))
        return found


def _read_list(path: str) -> list[str]:
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = [line.strip() for line in file]
    except UnicodeDecodeError:
        raise UserInputError(
            f'The image list {path} is not UTF-8 text: save it as UTF-8.'
        ) from None
    if names := [line for line in lines if line]:
        return names
    raise UserInputError(
        f'The image list {path} is empty: write one image name a line, '
        'without .jpg.'
    )


def _without_repeats(files: list[dict], list_path: str) -> list[dict]:
    unique = {item['img_id']: item for item in files}
    if repeats := len(files) - len(unique):
        _warn(f'{repeats} names are repeated in {list_path}; used once each.')
    return list(unique.values())


def _warn_degenerate(counts: dict[str, int]) -> None:
    if counts:
        _warn(
            f'Skipped {sum(counts.values())} degenerate boxes (no width or '
            f'height, or outside the image) in {first_few(list(counts))}.'
        )


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)


def _sticks_out(box: Sequence[float], size: tuple[int, int]) -> bool:
    return box[2] > size[0] or box[3] > size[1]


def _to_bbox(box: Sequence[float], width: int, height: int) -> list[int]:
    """Count pixels from 0, as mmdet does, and clips to the image."""
    bounds = (width, height, width, height)
    return [
        min(max(int(value) - 1, 0), bound - 1)
        for value, bound in zip(box, bounds, strict=True)
    ]


def _checked_classes(classes: Any) -> tuple[str, ...]:
    if isinstance(classes, str):
        raise UserInputError(
            f"classes is the text '{classes}', not a tuple of names: for one "
            f"class write classes=('{classes}',)."
        )
    names = tuple(classes)
    if not names or len(set(names)) < len(names):
        raise UserInputError(
            f'classes is {names}: give one or more names, each of them once.'
        )
    return names


def make_palette(num_classes: int) -> list[tuple[int, int, int]]:
    """One RGB colour (0 to 255) a class, alike in every run.

    Hues are a golden section apart: any first few of them differ well.
    """
    hues = [(i * 0.618034) % 1 for i in range(num_classes)]
    colours = [colorsys.hsv_to_rgb(hue, 0.8, 0.9) for hue in hues]
    return [tuple(round(255 * part) for part in rgb) for rgb in colours]


def check_images(dataset: Any) -> None:
    """Call ``check_images`` of each VOC dataset below wrappers.

    Args:
        dataset: A built dataset, or a wrapper such as ``ConcatDataset`` or
            ``RepeatDataset``; datasets of other classes are passed over.

    Raises:
        UserInputError: Images cannot be read or differ in size from their
            annotation.
    """
    if isinstance(dataset, VOCDevkitDataset):
        dataset.check_images()
    wrapped = getattr(dataset, 'dataset', None)
    inner = [] if wrapped is None else [wrapped]
    for child in [*inner, *getattr(dataset, 'datasets', [])]:
        check_images(child)


def image_size(path: str) -> tuple[int, int]:
    """(width, height) in pixels as mmcv loads it: after EXIF rotation.

    Raises:
        FileFault: The file is not a readable image.
    """
    try:
        with Image.open(path) as image:
            return _oriented_size(image)
    except Exception as error:  # Pillow's readers raise many types
        raise _unreadable(path, error) from None


def _whole_image_size(path: str) -> tuple[int, int]:
    """(width, height) in pixels of an image that is not cut off.

    Raises:
        FileFault: The file is not a readable image.
    """
    try:
        with open(path, 'rb') as file, Image.open(file) as image:
            size = _oriented_size(image)
            if not _is_complete(file, image.format):
                image.load()
    except Exception as error:  # Pillow's decoders raise many types
        raise _unreadable(path, error) from None
    return size


def _unreadable(path: str, error: Exception) -> FileFault:
    known = not isinstance(error, Image.UnidentifiedImageError)
    reason = f' ({error})' if known else ''
    return FileFault(
        path,
        f'is not a readable image{reason}',
        'replace it, or take its name out of the image list',
    )


def _oriented_size(image: Image.Image) -> tuple[int, int]:
    # without the first test Pillow decodes a whole PNG to look for EXIF
    exif = image.getexif() if 'exif' in image.info else {}
    width, height = image.size
    turned = exif.get(_EXIF_ORIENTATION, 1) >= 5
    return (height, width) if turned else (width, height)


def _is_complete(file: BinaryIO, image_format: str | None) -> bool:
    """Whether the end mark is there; False for other formats."""
    mark = {'JPEG': b'\xff\xd9', 'PNG': b'IEND'}.get(image_format or '')
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 32, 0))
    tail = file.read()
    file.seek(position)
    return mark is not None and mark in tail
