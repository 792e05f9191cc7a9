"""PASCAL VOC, and anybody's data in its layout, checked when it is loaded."""

import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import VOCDataset, XMLDataset
from mmengine.logging import print_log

from sb_mm.errors import FileFault, UserInputError, first_few, shorten
from sb_mm.registry import DATASETS

from .annotation import AnnotatedObject, read_annotation
from .devkit_files import FileIndex, choose, nfc, read_list
from .images import (
    MAX_MEGAPIXELS,
    collect,
    decode,
    read_header,
    reader_of,
    turn_box,
)

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')

# second column of the devkit's lists of one class, e.g. `000005 -1`
_LIST_LABEL = re.compile(r'\s+-?[01]$')
# What is said of some files, once, with their number.
_NOTES = dict(
    box='{} degenerate boxes (no width or height, or outside the image) are '
    'skipped in {}.',
    size='{} annotations give another size than their image has: {}.',
    exif='{} images have an EXIF tag that turns or mirrors them ({}): their '
    'boxes are taken to be those of the stored pixels, except where <size> '
    'is that of the turned image.',
    twin='{} names have more than one image and a <filename> that is none '
    'of them; the first is used: {}.',
)


@DATASETS.register_module()
class VOCDevkitDataset(XMLDataset):
    """PASCAL VOC, or a user's own data in the same layout.

    Below ``data_prefix['sub_data_root']`` (relative to ``data_root``) lie
    ``Annotations/<name>.xml`` and ``JPEGImages/<name>.jpg`` (or .jpeg,
    .png, .bmp, .webp, in any case of letters; of several, ``<filename>``
    names the one); ``ann_file`` lists the names. Names of files and classes
    are the same in any form of Unicode.

    What differs from mmdet's ``VOCDataset``: everything that can be wrong
    with the files is reported in one sentence when they are loaded, boxes
    are clipped to the image, and the metainfo holds no ``dataset_type``,
    so that VOC2007 and VOC2012 can be concatenated. Boxes become integers,
    less one, as in mmdet: ``bbox`` is (x1, y1, x2, y2) in pixels, the first
    pixel is 0. They fit the image as the ``LoadImageFromFile`` of the
    pipeline reads it, whether that ignores EXIF's orientation (a
    ``color_type`` such as ``'color_ignore_orientation'``) or not.

    Args:
        skip_unknown_classes: Leave out objects whose class is not among
            ``metainfo['classes']``; by default they are an error, as they
            are mostly misspelt names.
        max_megapixels: Size of an image that is refused, as it would take
            gigabytes each time it is loaded.
        max_annotation_mb: Size of an annotation that is refused; 4 MB hold
            10,000 objects and more.
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
        self,
        *,
        skip_unknown_classes: bool = False,
        max_megapixels: float = MAX_MEGAPIXELS,
        max_annotation_mb: float = 4,
        **kwargs: Any,
    ) -> None:
        self.skip_unknown_classes = skip_unknown_classes
        self.max_megapixels = max_megapixels
        self.max_annotation_mb = max_annotation_mb
        kwargs.setdefault('data_prefix', dict(sub_data_root=''))
        super().__init__(**kwargs)

    @classmethod
    def _load_metainfo(cls, metainfo: Mapping | None = None) -> dict:
        loaded = super()._load_metainfo(metainfo)
        loaded['classes'] = _checked_classes(loaded['classes'])
        own_classes = loaded['classes'] != tuple(cls.METAINFO['classes'])
        if own_classes and 'palette' not in metainfo:
            loaded['palette'] = 'random'  # but the same each time
        return loaded

    def load_data_list(self) -> list[dict]:
        """Find and read all annotations and the heads of all images.

        Returns:
            One dict an image: ``img_id``, ``img_path``, ``xml_path``,
            ``width`` and ``height`` in pixels, ``instances``.

        Raises:
            UserInputError: The files are missing or cannot be used.
        """
        self._check_layout()
        classes = self._metainfo['classes']
        self.cat2label = {nfc(name): i for i, name in enumerate(classes)}
        data_list = collect(self.parse_data_info, self._find_files())
        _warn_of([(info['xml_path'], info.pop('notes')) for info in data_list])
        return data_list

    def parse_data_info(self, img_info: dict) -> dict:
        """Read one annotation, and the head of its image.

        Args:
            img_info: ``img_id``, ``img_paths`` (one, or several of which the
                annotation names one) and ``xml_path``.

        Returns:
            ``img_id``, ``img_path``, ``xml_path``, ``width`` and ``height``
            in pixels as the pipeline loads it, ``instances``, and ``notes``,
            the kinds of what the user should know of it.

        Raises:
            FileFault: The annotation or the image cannot be used.
        """
        path = img_info['xml_path']
        limit = int(self.max_annotation_mb * 1e6)
        annotation = read_annotation(path, limit)
        img_path, notes = choose(img_info['img_paths'], annotation.filename)
        head = read_header(
            img_path,
            deep=self._reader.color_type == 'unchanged',
            max_megapixels=self.max_megapixels,
        )
        shown = annotation.size == head.shown_size != head.size
        size = head.shown_size if shown else head.size
        turn = head.turn(shown, self._loads_shown)
        known = [o for o in annotation.objects if self._is_known(o.name, path)]
        boxes = [turn_box(_to_bbox(o.box, size), size, turn) for o in known]
        instances = [
            self._to_instance(obj, bbox)
            for obj, bbox in zip(known, boxes, strict=True)
            if bbox[0] < bbox[2] and bbox[1] < bbox[3]
        ]
        notes += ['box'] * (len(boxes) - len(instances))
        notes += ['exif'] * (head.is_turned)
        notes += ['size'] * (annotation.size not in (None, size))
        width, height = head.shown_size if self._loads_shown else head.size
        return dict(
            img_id=img_info['img_id'],
            img_path=img_path,
            xml_path=path,
            width=width,
            height=height,
            instances=instances,
            notes=notes,
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
        """Decode every image as the pipeline will.

        Raises:
            UserInputError: Images cannot be decoded.
        """
        paths = [self.get_data_info(i)['img_path'] for i in range(len(self))]
        collect(lambda path: decode(path, self._reader), paths)

    @property
    def _reader(self) -> LoadImageFromFile:
        return reader_of(self.pipeline.transforms)

    @property
    def _loads_shown(self) -> bool:
        """Whether the pipeline turns images as their EXIF tags say."""
        flag = self._reader.color_type
        as_stored = flag == 'unchanged' or 'ignore_orientation' in flag
        return not as_stored and self._reader.imdecode_backend != 'turbojpeg'

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
        is_there = os.path.exists(self.ann_file)
        lists = [] if is_there else [self.ann_file or 'ann_file']
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
                f'and {self._folders()[1]}/<name>.jpg (or '
                f'{", ".join(IMAGE_SUFFIXES[1:])})'
            )
        return (
            f'run `python tools/prepare_voc.py --out {shlex.quote(root)}` or '
            'set data_root to the folder that holds VOC2007 and VOC2012'
        )

    def _find_files(self) -> list[dict]:
        ann_folder, img_folder = self._folders()
        annotations = FileIndex(ann_folder, ('.xml',))
        images = FileIndex(img_folder, IMAGE_SUFFIXES)
        files = []
        for line in read_list(self.ann_file):
            whole = annotations[line] or images[line]
            name = line if whole else _LIST_LABEL.sub('', line)
            xml_path = (annotations[name] or [''])[0]
            files.append(
                dict(img_id=name, img_paths=images[name], xml_path=xml_path)
            )
        self._check_found(files)
        return _without_repeats(files, self.ann_file)

    def _check_found(self, files: list[dict]) -> None:
        missing = []
        for item in files:
            lacks = [] if item['xml_path'] else ['annotation']
            lacks += [] if item['img_paths'] else ['image']
            if lacks:
                missing.append(f'{item["img_id"]} (no {" and ".join(lacks)})')
        if missing:
            raise UserInputError(
                f'{len(missing)} of the {len(files)} names in {self.ann_file} '
                f'lack files, {first_few(missing)}: {self._remedy}.'
            )

    def _is_known(self, name: str, path: str) -> bool:
        known = nfc(name) in self.cat2label
        if not known and not self.skip_unknown_classes:
            classes = first_few(list(self.cat2label), limit=20)
            raise FileFault(
                path,
                f"has the class '{shorten(name)}'",
                f'the classes given are {classes}; correct the name or '
                "change `classes` in the dataset's metainfo",
            )
        return known

    def _to_instance(self, obj: AnnotatedObject, bbox: list[int]) -> dict:
        shorter = min(bbox[2] - bbox[0], bbox[3] - bbox[1])
        ignore = obj.difficult or shorter < (self.bbox_min_size or 0)
        label = self.cat2label[nfc(obj.name)]
        return dict(ignore_flag=int(ignore), bbox=bbox, bbox_label=label)


_VOC_CLASSES = tuple(VOCDataset.METAINFO['classes'])


def _without_repeats(files: list[dict], list_path: str) -> list[dict]:
    unique = {nfc(item['img_id']): item for item in files}
    if repeats := len(files) - len(unique):
        _warn(f'{repeats} names are repeated in {list_path}; used once each.')
    return list(unique.values())


def _warn_of(notes: Sequence[tuple[str, list[str]]]) -> None:
    """Say once of each kind of note how many there are, and where."""
    for kind, text in _NOTES.items():
        counts = {path: own.count(kind) for path, own in notes if kind in own}
        if counts:
            _warn(text.format(sum(counts.values()), first_few(list(counts))))


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)


def _to_bbox(box: Sequence[float], size: tuple[int, int]) -> list[int]:
    """Count pixels from 0, as mmdet does, and clip to the image."""
    return [
        min(max(int(value) - 1, 0), bound - 1)
        for value, bound in zip(box, (*size, *size), strict=True)
    ]


def _checked_classes(classes: Any) -> tuple[str, ...]:
    if isinstance(classes, str):
        raise UserInputError(
            f"classes is the text '{shorten(classes)}', not a tuple of names: "
            f"for one class write classes=('{shorten(classes)}',)."
        )
    names = tuple(classes)
    texts = {nfc(name) for name in names if isinstance(name, str)}
    if not names or len(texts) < len(names):
        raise UserInputError(
            f'classes is {shorten(repr(names), 300)}: give one or more names, '
            'each of them once.'
        )
    return names
