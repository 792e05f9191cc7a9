"""Annotation files in COCO's format, checked for what mmdet reads of them."""

import json
import math
from collections import Counter
from collections.abc import Sequence

from sb_mm.datasets.images import open_regular
from sb_mm.errors import UserInputError, explain, first_few, shorten

from .classes import check_equal, listed

_REMEDY = (
    'give the annotation file of a dataset in the format of COCO, in UTF-8 '
    'without a byte order mark'
)
_EMPTY = (
    'objects are left out, as mmdet does with those of no image in the file, '
    'outside of it, of less than a pixel, or without area'
)
_BEYOND = (
    'boxes reach beyond their image, and mmdet does not clip them (correct '
    'the boxes, or the width and height of the images)'
)
_OTHERS = 'objects are left out, of categories not in metainfo.classes'
# What mmdet reads.
_KEYS = dict(
    images=('id', 'file_name', 'width', 'height'),
    categories=('id', 'name'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
)


def read_coco(path: str) -> dict[str, list[dict]]:
    """Read a file and check the types of what mmdet reads of it."""
    with explain(f'{path} is not JSON in that form', _REMEDY):
        with open_regular(path, f'{_REMEDY}, or set --data-root') as file:
            content = json.loads(file.read().decode())
        for part in _KEYS:
            _check_part(path, part, content.get(part))
    return content


def _check_part(path: str, part: str, items: list[dict] | None) -> None:
    if not items:
        raise UserInputError(f'{path} has no {part}: {_REMEDY}.')
    for item in items:
        for key in _KEYS[part]:
            if not _is_valid(key, value := item.get(key)):
                raise UserInputError(
                    f'{path} has {key} {shorten(repr(value))} in one of its '
                    f'{part}: write an integer as id, a text as name, a '
                    'number of pixels as size, [x, y, width, height] as bbox.'
                )
    twice = [i for i, n in Counter(i['id'] for i in items).items() if n > 1]
    if twice:
        raise UserInputError(
            f'{path} has {len(twice)} ids more than once in its {part} '
            f'({first_few([*map(str, twice)])}): give each its own.'
        )


def check_categories(
    path: str, content: dict[str, list[dict]], classes: list[str]
) -> None:
    """Compare the classes with the file, in whose order mmdet labels them."""
    names = [item['name'] for item in content['categories']]
    labelled = [name for name in names if name in classes]
    if missing := [name for name in classes if name not in labelled]:
        raise UserInputError(
            f'{path} has no category {ascii(missing[0])}, only '
            f'{listed([*map(ascii, names)])}: set metainfo.classes '
            'of the dataset to its names, as they are written there.'
        )
    lists = (path, labelled), ('metainfo.classes', classes)
    check_equal(lists, 'write the classes in the order of the file')


def box_notes(
    path: str, content: dict[str, list[dict]], classes: Sequence[str]
) -> list[tuple[str, str]]:
    """Return a note of each object that mmdet leaves out, or does not clip."""
    sizes = {i['id']: (i['width'], i['height']) for i in content['images']}
    names = {item['id']: item['name'] for item in content['categories']}
    notes = []
    for item in content['annotations']:
        name = names.get(item['category_id'], str(item['category_id']))
        # No box lies inside of an image that is not there.
        size = sizes.get(item['image_id'], (-math.inf, 0))
        note = _note_of(item, size) if name in classes else _OTHERS
        notes.append((note, name if note == _OTHERS else path))
    if not any(note in ('', _BEYOND) for note, _ in notes):
        raise UserInputError(
            f'{path} has no object of metainfo.classes with a box in one of '
            'its images: give a file with annotations of these images.'
        )
    return [pair for pair in notes if pair[0]]


def _note_of(item: dict, size: tuple[float, float]) -> str:
    x, y, w, h = item['bbox']
    inside = -w < x < size[0] and -h < y < size[1]
    if not inside or min(w, h) < 1 or item['area'] <= 0:
        return _EMPTY
    # Rounding is no fault: the published files of COCO have some of it.
    beyond = min(x, y) < -1 or x + w > size[0] + 1 or y + h > size[1] + 1
    return _BEYOND if beyond else ''


def _is_valid(key: str, value: object) -> bool:
    if key in ('file_name', 'name'):
        return isinstance(value, str)
    if key == 'bbox':
        is_four = isinstance(value, list) and len(value) == 4
        return is_four and all(map(_is_number, value))
    if key in ('width', 'height', 'area'):
        return _is_number(value) and (value > 0 or key == 'area')
    return isinstance(value, (int, str))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
