"""Reading of PASCAL VOC annotation files, with errors a user can act on."""

import json
import math
import re
import xml.etree.ElementTree as ET
from typing import NamedTuple

from sb_mm.errors import FileFault, first_line, shorten

from .images import open_regular

_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
_RESTORE = 'restore it, save it as UTF-8, or take it out of the image list'
_RULES = (
    'every <object> needs a <name> and a <bndbox> of four finite numbers in '
    'pixels, xmin <= xmax and ymin <= ymax; <difficult> is 1 where it does '
    'not count, else 0'
)
_DECLARED = re.compile(rb'<\?xml[^>]*?\bencoding\s*=\s*["\']([\w.:-]+)')
# Programs that declare these write characters of their successor.
_SUPERSETS = dict(gb2312='gb18030', gbk='gb18030')
_WORDS = {
    **dict.fromkeys(('true', 'yes', 't', 'y'), True),
    **dict.fromkeys(('false', 'no', 'f', 'n', ''), False),
}


class AnnotatedObject(NamedTuple):
    """One ``<object>``."""

    name: str
    # As in the file, (xmin, ymin, xmax, ymax): pixels, the first one is 1,
    # the last one belongs to the box.
    box: list[float]
    difficult: bool


class Annotation(NamedTuple):
    """One annotation file."""

    filename: str  # without folders; may be empty
    size: tuple[int, int] | None  # (width, height); None if unusable
    objects: list[AnnotatedObject]


def read_annotation(path: str, max_bytes: int = 1 << 30) -> Annotation:
    """Read a PASCAL VOC annotation, in any encoding that Python knows.

    Raises:
        FileFault: The file is larger than ``max_bytes`` or not a VOC
            annotation, or an object has no name, no box, or none that is one.
    """
    with open_regular(path, _RESTORE) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        remedy = f'{_RESTORE}, or raise max_annotation_mb of the dataset'
        fault = f'is larger than {max_bytes / 1e6:g} MB'
        raise FileFault(path, fault, remedy)
    try:
        root = ET.fromstring(_decode(data))
    except (ET.ParseError, LookupError, ValueError) as error:
        fault = f'is not XML in its encoding ({first_line(error)})'
        raise FileFault(path, fault, _RESTORE) from None
    if root.tag != 'annotation':
        fault = f'holds <{shorten(root.tag)}> in place of a VOC <annotation>'
        raise FileFault(path, fault, _RESTORE)
    filename = re.split(r'[/\\]', root.findtext('filename', '').strip())[-1]
    objects = [_read_object(node, path) for node in root.findall('object')]
    return Annotation(filename, _read_size(root), objects)


def _decode(data: bytes) -> str:
    """Decode XML of any encoding that Python knows: expat knows four."""
    encoding = json.detect_encoding(data)  # UTF's, by mark and zeros
    declared = _DECLARED.search(data)
    if encoding == 'utf-8' and declared:
        name = declared[1].decode().lower()
        # Else the declaration could not have been found.
        if '<'.encode(name) == b'<':
            encoding = _SUPERSETS.get(name, name)
    return data.decode(encoding)


def _read_size(root: ET.Element) -> tuple[int, int] | None:
    texts = (root.findtext(f'size/{key}', '') for key in ('width', 'height'))
    width, height = (int(_number(text) or 0) for text in texts)
    return (width, height) if width > 0 and height > 0 else None


def _read_object(node: ET.Element, path: str) -> AnnotatedObject:
    name = node.findtext('name', '').strip()
    word = node.findtext('difficult', '').strip().lower()
    difficult = _WORDS.get(word, _number(word))
    # direct children only: not the boxes of nested <part>s
    corners = node.iterfind('bndbox[1]/*')
    texts = {corner.tag: corner.text or '' for corner in corners}
    box = [_number(texts.get(key, '')) for key in _CORNERS]
    if not name or None in box or box[2] < box[0] or box[3] < box[1]:
        found = (f'{k} {shorten(texts.get(k) or "missing")}' for k in _CORNERS)
        fault = f"has the object '{shorten(name)}' with {', '.join(found)}"
        raise FileFault(path, fault, _RULES)
    if difficult is None:
        fault = f"has a '{shorten(name)}' with difficult '{shorten(word)}'"
        raise FileFault(path, fault, _RULES)
    return AnnotatedObject(name, box, bool(difficult))


def _number(text: str) -> float | None:
    """Return a finite number, or None where the text is none."""
    try:
        return value if math.isfinite(value := float(text)) else None
    except ValueError:
        return None
