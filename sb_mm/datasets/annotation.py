"""Reading of PASCAL VOC annotation files, with errors a user can act on."""

import codecs
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import NamedTuple

from sb_mm.errors import FileFault, first_line, shorten

from .images import open_regular

_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
_COMPLETE = (
    'every <object> needs a <name> and a <bndbox> with xmin, ymin, xmax and '
    'ymax'
)
_DECLARED = re.compile(rb'<\?xml[^>]*?\bencoding\s*=\s*["\']([\w.:-]+)')
# UTF-32's mark starts with that of UTF-16: it is looked for first.
_MARKS = {
    codecs.BOM_UTF32_LE: 'utf-32',
    codecs.BOM_UTF32_BE: 'utf-32',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
    codecs.BOM_UTF8: 'utf-8-sig',
}
# Programs that declare these write characters of their successor.
_SUPERSETS = dict(gb2312='gb18030', gbk='gb18030')
_TRUE = {'true', 'yes', 't', 'y'}
_FALSE = {'false', 'no', 'f', 'n', ''}


class AnnotatedObject(NamedTuple):
    """One ``<object>``.

    Attributes:
        name: Class name.
        box: (xmin, ymin, xmax, ymax) as in the file: pixels, the first
            pixel is 1, the last one belongs to the box.
        difficult: Whether the evaluation leaves it out.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class Annotation(NamedTuple):
    """One annotation file.

    Attributes:
        filename: What ``<filename>`` says, without folders; may be empty.
        size: (width, height) of the image in pixels; None if the file
            does not give a usable one.
        objects: In the order of the file; the boxes of their ``<part>``
            elements are left out.
    """

    filename: str
    size: tuple[int, int] | None
    objects: list[AnnotatedObject]


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
    """Parse XML, also in encodings and spellings that expat lacks."""
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):  # whatever is declared
            return ET.fromstring(data.decode(encoding))
    try:
        return ET.fromstring(data)
    except (ET.ParseError, LookupError, ValueError):
        if not data.lstrip().startswith(b'<'):
            raise
    declared = _DECLARED.search(data)
    encoding = declared[1].decode().lower() if declared else 'utf-8'
    if '<'.encode(encoding) != b'<':  # or the declaration had not been found
        encoding = 'utf-8'
    return ET.fromstring(data.decode(_SUPERSETS.get(encoding, encoding)))


def _read_size(root: ET.Element) -> tuple[int, int] | None:
    try:
        width = int(float(root.findtext('size/width', '')))
        height = int(float(root.findtext('size/height', '')))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _read_object(node: ET.Element, path: str) -> AnnotatedObject:
    name = (node.findtext('name') or '').strip()
    if not name:
        raise FileFault(path, 'has an object without <name>', _COMPLETE)
    # `find` sees direct children only: not the boxes of nested <part>s
    corners = node.find('bndbox')
    if corners is None:
        fault = f"has a '{shorten(name)}' without <bndbox>"
        raise FileFault(path, fault, _COMPLETE)
    box = _read_box(corners, name, path)
    return AnnotatedObject(name, box, _read_difficult(node, name, path))


def _read_difficult(node: ET.Element, name: str, path: str) -> bool:
    text = (node.findtext('difficult') or '').strip()
    word = text.lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    try:
        return int(float(text)) != 0 or float(text) != 0
    except (ValueError, OverflowError):
        fault = f"has a '{shorten(name)}' with difficult '{shorten(text)}'"
        remedy = 'write 1 for objects that do not count, 0 for all others'
        raise FileFault(path, fault, remedy) from None


def _read_box(
    node: ET.Element, name: str, path: str
) -> tuple[float, float, float, float]:
    texts = {child.tag: child.text for child in node}
    values = [_read_corner(texts, key, name, path) for key in _CORNERS]
    xmin, ymin, xmax, ymax = values
    if xmax < xmin or ymax < ymin:
        fault = f"has an inverted '{shorten(name)}' box ({_as_text(values)})"
        remedy = (
            'xmin may not exceed xmax, nor ymin ymax; swap the corners back'
        )
        raise FileFault(path, fault, remedy)
    return xmin, ymin, xmax, ymax


def _read_corner(
    texts: dict[str, str | None], key: str, name: str, path: str
) -> float:
    if key not in texts:
        fault = f"has a '{shorten(name)}' box without <{key}>"
        raise FileFault(path, fault, _COMPLETE)
    text = texts[key] or ''
    try:
        value = float(text)
        int(value)  # neither nan nor inf
    except (ValueError, OverflowError):
        fault = f"has a '{shorten(name)}' box with {key} '{shorten(text)}'"
        remedy = 'coordinates are finite numbers, in pixels'
        raise FileFault(path, fault, remedy) from None
    return value


def _as_text(values: Sequence[float]) -> str:
    return ', '.join(
        f'{key} {value:g}' for key, value in zip(_CORNERS, values, strict=True)
    )
