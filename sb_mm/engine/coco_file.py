"""Annotation files in COCO's format, checked for what mmdet reads of them."""

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log

from sb_mm.datasets.images import open_regular
from sb_mm.errors import UserInputError, first_few, first_line, shorten

from .classes import listed

_REMEDY = (
    'give the annotation file of a dataset in the format of COCO, in UTF-8 '
    'without a byte order mark'
)
_NOTES = dict(
    unknown='{} objects of {} belong to no image in it and are left out.',
    empty='{} boxes of {} are left out, as mmdet does with those outside of '
    'the image, of less than a pixel, or without area.',
    beyond='{} boxes of {} reach beyond their image, and mmdet does not clip '
    'them: correct the boxes, or the width and height of the images.',
)


def read_coco(path: str) -> dict[str, list[dict]]:
    """Read a file and check the types of what mmdet reads of it.

    Raises:
        UserInputError: It is no such file, or an id is there twice.
    """
    try:
        with open_regular(path, f'{_REMEDY}, or set --data-root') as file:
            content = json.loads(file.read().decode())
        for part, keys in _COCO.items():
            _check_part(path, part, content[part], keys)
    except KeyError as error:
        raise UserInputError(
            f'{path} lacks {error.args[0]}: {_REMEDY}.'
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, UserInputError):
            raise
        raise UserInputError(
            f'{path} is not JSON in that form ({first_line(error)}): '
            f'{_REMEDY}.'
        ) from None
    return content


def check_categories(
    path: str, content: dict[str, list[dict]], classes: list[str]
) -> None:
    """Compare the classes with the file, in whose order mmdet labels them."""
    names = {item['id']: item['name'] for item in content['categories']}
    labelled = [name for name in names.values() if name in classes]
    if missing := [name for name in classes if name not in labelled]:
        raise UserInputError(
            f'{path} has no category {ascii(missing[0])}, only '
            f'{listed([*map(ascii, names.values())])}: set metainfo.classes '
            'of the dataset to its names, as they are written there.'
        )
    if labelled != classes:
        raise UserInputError(
            f'{path} has the categories in the order {listed(labelled)} and '
            f'metainfo.classes is {listed(classes)}, and mmdet counts labels '
            'in the order of the file: write the classes in that order.'
        )
    used = Counter(item['category_id'] for item in content['annotations'])
    if others := [i for i in used if names.get(i) not in classes]:
        left_out = first_few([names.get(i, str(i)) for i in others])
        _warn(
            f'{path} has objects of {len(others)} categories that are not in '
            f'metainfo.classes ({left_out}): they are left out.'
        )


def check_boxes(
    path: str, content: dict[str, list[dict]], classes: Sequence[str]
) -> None:
    """Count the boxes that mmdet leaves out, or trains on as they are.

    Raises:
        UserInputError: No box is left.
    """
    sizes = {i['id']: (i['width'], i['height']) for i in content['images']}
    known = {i['id'] for i in content['categories'] if i['name'] in classes}
    notes = Counter(
        _note_of(item, sizes.get(item['image_id']))
        for item in content['annotations']
        if item['category_id'] in known
    )
    if not notes['kept'] + notes['beyond']:
        raise UserInputError(
            f'{path} has no object of metainfo.classes with a box in one of '
            'its images: give a file with annotations of these images.'
        )
    for kind, text in _NOTES.items():
        if notes[kind]:
            _warn(text.format(notes[kind], path))


def _note_of(item: dict, size: tuple[float, float] | None) -> str:
    if size is None:
        return 'unknown'
    x, y, w, h = item['bbox']
    inside = -w < x < size[0] and -h < y < size[1]
    if not inside or min(w, h) < 1 or item['area'] <= 0:
        return 'empty'
    # Rounding is no fault: the published files of COCO have some of it.
    beyond = min(x, y) < -1 or x + w > size[0] + 1 or y + h > size[1] + 1
    return 'beyond' if beyond else 'kept'


def _check_part(
    path: str, part: str, items: list[dict], keys: dict[str, tuple]
) -> None:
    if not items:
        raise UserInputError(f'{path} has no {part}: {_REMEDY}.')
    for item in items:
        for key, (is_valid, wanted) in keys.items():
            if key not in item:
                raise KeyError(f'{key!r} in one of its {part}')
            if not is_valid(item[key]):
                raise UserInputError(
                    f'{path} has {key} {shorten(repr(item[key]))} in one of '
                    f'its {part}: write {wanted}.'
                )
    twice = [i for i, n in Counter(i['id'] for i in items).items() if n > 1]
    if twice:
        raise UserInputError(
            f'{path} has {len(twice)} ids more than once in its {part} '
            f'({first_few([*map(str, twice)])}): give each its own.'
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_box(value: Any) -> bool:
    is_four = isinstance(value, list) and len(value) == 4
    return is_four and all(map(_is_number, value))


def _is_length(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_ID = _is_id, 'an integer'
_TEXT = _is_text, 'a text'
_LENGTH = _is_length, 'a number of pixels'
# What mmdet reads, what is valid, and how that is called.
_COCO = dict(
    images=dict(id=_ID, file_name=_TEXT, width=_LENGTH, height=_LENGTH),
    categories=dict(id=_ID, name=_TEXT),
    annotations=dict(
        id=_ID,
        image_id=_ID,
        category_id=_ID,
        bbox=(_is_box, '[x, y, width, height], finite numbers in pixels'),
        area=(_is_number, 'a finite number'),
    ),
)


def _warn(message: str) -> None:
    print_log(message, 'current', logging.WARNING)
