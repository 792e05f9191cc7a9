"""PASCAL VOC, and anybody's data in its layout, checked when it is loaded."""

import os
import os.path as osp
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import VOCDataset, XMLDataset

from sb_mm.errors import FileFault, UserInputError, first_few, shorten
from sb_mm.files import nfc
from sb_mm.registry import DATASETS

from .annotation import AnnotatedObject, read_annotation
from .images import (
    MAX_MEGAPIXELS,
    cannot_read,
    collect,
    decode,
    open_regular,
    read_header,
    reader_of,
    warn_of,
)

_IMAGES = '.jpg', '.jpeg', '.png', '.bmp', '.webp'

# second column of the devkit's lists of one class, e.g. `000005 -1`
_LIST_LABEL = re.compile(r'\s+-?[01]$')
# What is said of some files, once, with their number.
_DEGENERATE = (
    'degenerate boxes (no width or height, or outside the image) are skipped'
)
_OTHER_SIZE = 'annotations give another size than their image has'
_TURNED = (
    'images have an EXIF tag that turns or mirrors them; their boxes are '
    'taken to be those of the stored pixels, unless <size> is as turned'
)
_TWIN = 'names have several images and a <filename> of none; the first is used'
_REPEATED = 'names are repeated; used once each'


@DATASETS.register_module()
class VOCDevkitDataset(XMLDataset):
    """PASCAL VOC, or a user's own data in the same layout.

    Below ``data_prefix['sub_data_root']`` (relative to ``data_root``) lie
    ``Annotations/<name>.xml`` and ``JPEGImages/<name>.jpg`` (or .jpeg,
    .png, .bmp, .webp; of several, ``<filename>`` names the one);
    ``ann_file`` lists the names, in any form of Unicode.

    Unlike mmdet's ``VOCDataset``, it says in one sentence what is wrong with
    the files; clips boxes to the image and turns them as the pipeline turns
    it by its EXIF tag; and has no ``dataset_type``, so that years can be
    concatenated. ``bbox`` is (x1, y1, x2, y2) in whole pixels from 0.

    Args:
        skip_unknown_classes: Leave out objects whose class is not among
            ``metainfo['classes']``; else they are an error.
        max_megapixels: Larger images are refused.
        max_annotation_mb: Larger annotations are; 4 MB hold 10,000 objects.
        kwargs: Those of mmdet's ``XMLDataset``.

    Raises:
        UserInputError: Files are missing or cannot be used; at once, or with
            ``lazy_init`` when the annotations are loaded.
    """

    METAINFO = dict(classes=VOCDataset.METAINFO['classes'], palette='random')

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
        classes = loaded['classes']
        names = () if isinstance(classes, str) else tuple(classes)
        texts = {nfc(name) for name in names if isinstance(name, str)}
        if not names or len(texts) < len(names):
            raise UserInputError(
                f'classes is {shorten(repr(classes), 300)}: give a tuple of '
                "names, each of them once, such as ('cat', 'dog') or ('cat',)."
            )
        return dict(loaded, classes=names)

    def load_data_list(self) -> list[dict]:
        """Find and read all annotations and the heads of all images."""
        backend = (self.backend_args or {}).get('backend', 'local')
        if backend != 'local':
            raise UserInputError(
                'VOCDevkitDataset reads local files only: leave '
                f'backend_args, which has {backend}, out.'
            )
        names = map(nfc, self._metainfo['classes'])
        self.cat2label = {name: label for label, name in enumerate(names)}
        data_list = collect(self.parse_data_info, self._find_files())
        warn_of(
            (note, info['xml_path'])
            for info in data_list
            for note in info.pop('notes')
        )
        return data_list

    def parse_data_info(self, img_info: dict) -> dict:
        """Return mmdet's keys of an annotation, and notes for the user."""
        path = img_info['xml_path']
        annotation = read_annotation(path, int(self.max_annotation_mb * 1e6))
        paths = img_info.pop('img_paths')
        img_path, notes = _choose(paths, annotation.filename)
        head = read_header(
            img_path,
            deep=self._reader.color_type == 'unchanged',
            max_megapixels=self.max_megapixels,
        )
        is_shown = annotation.size == head.shown_size != head.size
        loads_shown = self._loads_shown
        size = head.shown_size if is_shown else head.size
        notes += [_TURNED] * (head.orientation != 1)
        notes += [_OTHER_SIZE] * (annotation.size not in (None, size))
        found = [*self._instances(annotation.objects, size, path)]
        instances = [i for i in found if _shorter_side(i['bbox']) > 0]
        notes += [_DEGENERATE] * (len(found) - len(instances))
        if is_shown != loads_shown:
            for i in instances:
                i['bbox'] = head.turn_box(i['bbox'], loads_shown)
        width, height = head.shown_size if loads_shown else head.size
        return dict(
            img_info,
            img_path=img_path,
            width=width,
            height=height,
            instances=instances,
            notes=notes,
        )

    def _instances(
        self, objects: Sequence[AnnotatedObject], size: tuple, path: str
    ) -> Iterator[dict]:
        """Yield mmdet's keys of the objects of known classes."""
        for obj in objects:
            label = self.cat2label.get(nfc(obj.name))
            if label is None:
                if self.skip_unknown_classes:
                    continue
                classes = first_few(list(self.cat2label), limit=20)
                raise FileFault(
                    path,
                    f"has the class '{shorten(obj.name)}'",
                    f'the classes given are {classes}; correct the name or '
                    "change `classes` in the dataset's metainfo",
                )
            bbox = _to_bbox(obj.box, size)
            small = _shorter_side(bbox) < (self.bbox_min_size or 0)
            ignore = int(obj.difficult or small)
            yield dict(ignore_flag=ignore, bbox=bbox, bbox_label=label)

    def filter_data(self) -> list[dict]:
        """Apply ``filter_cfg`` as mmdet does, and refuse to leave nothing."""
        if kept := super().filter_data():
            return kept
        raise UserInputError(
            f'None of the {len(self.data_list)} images listed in '
            f'{self.ann_file} passes filter_cfg={self.filter_cfg}: '
            'annotate objects or change filter_cfg.'
        )

    def check_images(self) -> None:
        """Decode every image as the pipeline will, or raise."""
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

    @property
    def _remedy(self) -> str:
        """How to get the files: from the user, or from VOC's server."""
        root = shlex.quote(osp.normpath(self.data_root or '.'))
        return (
            'the image list needs names without .jpg, one a line, in UTF-8, '
            f'and {self.sub_data_root or "data_root"} needs '
            f'{self.ann_subdir}/<name>.xml and {self.img_subdir}/<name>.jpg '
            f'(or {", ".join(_IMAGES[1:])}); for VOC itself, run `python '
            f'tools/prepare_voc.py --out {root}`'
        )

    def _find_files(self) -> list[dict]:
        lines = _read_list(self.ann_file or 'ann_file', self._remedy)
        annotations = self._index(self.ann_subdir, ('.xml',))
        images = self._index(self.img_subdir, _IMAGES)
        files, missing = {}, []
        for line in lines:
            name = line if _key(line) in images else _LIST_LABEL.sub('', line)
            key = _key(name)
            lacks = ['annotation'] * (key not in annotations)
            lacks += ['image'] * (key not in images)
            if lacks:
                missing.append(f'{name} (no {" and ".join(lacks)})')
                continue
            files[key] = dict(
                img_id=name,
                img_paths=images[key],
                xml_path=annotations[key][0],
            )
        if missing:
            raise UserInputError(
                f'{len(missing)} of the {len(lines)} names in {self.ann_file} '
                f'lack files, {first_few(missing)}: {self._remedy}.'
            )
        warn_of([(_REPEATED, self.ann_file)] * (len(lines) - len(files)))
        return list(files.values())

    def _index(
        self, folder: str, suffixes: Sequence[str]
    ) -> dict[str, list[str]]:
        """Map names without suffix, in one form of Unicode, to the files."""

        def refuse(error: OSError) -> NoReturn:
            raise cannot_read(error.filename, error, self._remedy) from None

        top = osp.join(self.sub_data_root, folder)
        found: dict[str, list[str]] = {}
        for parent, _, names in os.walk(top, onerror=refuse, followlinks=True):
            for name in sorted(names):
                path = osp.join(parent, name)
                stem, suffix = osp.splitext(path.removeprefix(top))
                if suffix.lower() in suffixes:
                    key = _key(stem.lstrip(os.sep))
                    found.setdefault(key, []).append(path)
        return found


def _read_list(path: str, remedy: str) -> list[str]:
    """Return the lines of an image list that are not blank."""
    lines: list[str] = []
    with open_regular(path, remedy) as file, suppress(UnicodeDecodeError):
        lines = file.read().decode('utf-8-sig').splitlines()
    if names := [line.strip() for line in lines if line.strip()]:
        return names
    raise FileFault(path, 'is empty or not UTF-8', remedy)


def _key(name: str) -> str:
    """Return the form in which names of files are compared."""
    return nfc(osp.normpath(name))


def _choose(paths: Sequence[str], filename: str) -> tuple[str, list[str]]:
    """Return the path that ``<filename>`` names, or the first, and notes."""
    wanted = nfc(filename)

    def likeness(path: str) -> int:
        name = nfc(osp.basename(path))
        return (name == wanted) + (name.lower() == wanted.lower())

    best = max(paths, key=likeness)
    notes = [_TWIN] if len(paths) > 1 and not likeness(best) else []
    return best, notes


def _to_bbox(box: Sequence[float], size: tuple[int, int]) -> list[int]:
    """Count pixels from 0, as mmdet does, and clip to the image."""
    pairs = zip(box, size * 2, strict=True)
    return [min(max(int(value) - 1, 0), end - 1) for value, end in pairs]


def _shorter_side(bbox: Sequence[int]) -> int:
    return min(bbox[2] - bbox[0], bbox[3] - bbox[1])
