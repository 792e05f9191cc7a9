"""Reading of PASCAL VOC annotation files, with errors a user can act on."""

import codecs
import math
import re
import xml.etree.ElementTree as ET
from typing import NamedTuple
from unicodedata import normalize

from sb_mm.errors import FileFault, first_line, shorten

from .images import open_regular

_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
_COMPLETE = (
    'every <object> needs a <name> and a <bndbox> with xmin, ymin, xmax and '
    'ymax'
)
_FINITE = 'coordinates are finite numbers, in pixels'
_SWAPPED = 'xmin may not exceed xmax, nor ymin ymax; swap the corners back'
_DECLARED = re.compile(rb'<\?xml[^>]*?\bencoding\s*=\s*["\']([\w.:-]+)')
# UTF-32's mark starts with that of UTF-16: it is looked for first.
_STARTS = {
    codecs.BOM_UTF32_LE: 'utf-32',
    codecs.BOM_UTF32_BE: 'utf-32',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
    codecs.BOM_UTF8: 'utf-8-sig',
    b'<\0': 'utf-16-le',
}
# Programs that declare these write characters of their successor.
_SUPERSETS = dict(gb2312='gb18030', gbk='gb18030')
_TRUE = {'true', 'yes', 't', 'y'}
_FALSE = {'false', 'no', 'f', 'n', ''}


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


def nfc(text: str) -> str:
    """Return the form of Unicode in which names are compared."""
    return normalize('NFC', text)


def read_annotation(path: str, max_bytes: int = 1 << 30) -> Annotation:
    """Read a PASCAL VOC annotation.

    Args:
        path: An XML file in any encoding that it declares and Python knows.
        max_bytes: Size of a file that is not read any more.

    Raises:
        FileFault: The file is too large or not a VOC annotation, an object
            lacks its name or box, a coordinate is not a number, corners are
            swapped, or ``<difficult>`` is neither a number nor yes or no.
    """
    root = _read_root(path, max_bytes)
    filename = re.split(r'[/\\]', root.findtext('filename', '').strip())[-1]
    objects = [_read_object(node, path) for node in root.findall('object')]
    return Annotation(filename, _read_size(root), objects)


def _read_root(path: str, max_bytes: int) -> ET.Element:
    remedy = 'restore the annotation or take it out of the image list'
    with open_regular(path, remedy) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise FileFault(
            path,
            f'is larger than {max_bytes / 1e6:g} MB',
            f'{remedy}, or raise max_annotation_mb of the dataset if it is '
            'one image with that many objects',
        )
    try:
        root = _parse(data)
    except (UnicodeDecodeError, LookupError) as error:
        fault = f'is not in its encoding ({first_line(error)})'
        raise FileFault(path, fault, 'save it as UTF-8') from None
    except (ET.ParseError, ValueError) as error:
        fault = f'is not XML ({first_line(error)})'
        raise FileFault(path, fault, remedy) from None
    if root.tag != 'annotation':
        fault = f'holds <{shorten(root.tag)}> in place of a VOC <annotation>'
        raise FileFault(path, fault, remedy)
    return root


def _parse(data: bytes) -> ET.Element:
    """Parse XML in any encoding that Python knows: expat knows four."""
    starts = (_STARTS[start] for start in _STARTS if data.startswith(start))
    if not (encoding := next(starts, '')):  # whatever is declared
        if not data.lstrip().startswith(b'<'):
            return ET.fromstring(data)  # big-endian, or no XML
        declared = _DECLARED.search(data)
        encoding = declared[1].decode().lower() if declared else 'utf-8'
        if '<'.encode(encoding) != b'<':  # or it would not have been found
            encoding = 'utf-8'
    return ET.fromstring(data.decode(_SUPERSETS.get(encoding, encoding)))


def _read_size(root: ET.Element) -> tuple[int, int] | None:
    texts = (root.findtext(f'size/{key}', '') for key in ('width', 'height'))
    width, height = (int(_number(text) or 0) for text in texts)
    return (width, height) if width > 0 and height > 0 else None


def _read_object(node: ET.Element, path: str) -> AnnotatedObject:
    name = (node.findtext('name') or '').strip()
    if not name:
        raise FileFault(path, 'has an object without <name>', _COMPLETE)
    what = f"'{shorten(name)}'"
    # `find` sees direct children only: not the boxes of nested <part>s
    corners = node.find('bndbox')
    if corners is None:
        raise FileFault(path, f'has a {what} without <bndbox>', _COMPLETE)
    box = _read_box(corners, what, path)
    return AnnotatedObject(name, box, _read_difficult(node, what, path))


def _read_difficult(node: ET.Element, what: str, path: str) -> bool:
    text = (node.findtext('difficult') or '').strip()
    word = text.lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    value = _number(text)
    if value is None:
        fault = f"has a {what} with difficult '{shorten(text)}'"
        remedy = 'write 1 for objects that do not count, 0 for all others'
        raise FileFault(path, fault, remedy)
    return value != 0


def _read_box(node: ET.Element, what: str, path: str) -> list[float]:
    texts = {child.tag: child.text or '' for child in node}
    if missing := [key for key in _CORNERS if key not in texts]:
        fault = f'has a {what} box without <{missing[0]}>'
        raise FileFault(path, fault, _COMPLETE)
    box = [_number(texts[key]) for key in _CORNERS]
    if None in box:
        key = _CORNERS[box.index(None)]
        fault = f"has a {what} box with {key} '{shorten(texts[key])}'"
        raise FileFault(path, fault, _FINITE)
    if box[2] < box[0] or box[3] < box[1]:
        values = ', '.join(map('{} {:g}'.format, _CORNERS, box))
        fault = f'has an inverted {what} box ({values})'
        raise FileFault(path, fault, _SWAPPED)
    return box


def _number(text: str) -> float | None:
    """Return a finite number, or None where the text is none."""
    try:
        return value if math.isfinite(value := float(text)) else None
    except ValueError:
        return None
