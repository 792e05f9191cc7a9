"""Reading of PASCAL VOC annotation files, with errors a user can act on."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from sb_mm.errors import UserInputError, first_few

_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
_COMPLETE = (
    'every <object> needs a <name> and a <bndbox> with xmin, ymin, xmax and '
    'ymax'
)


class FileFault(UserInputError):
    """One file of the dataset cannot be used.

    Args:
        path: The file.
        fault: What is wrong with it, to be read after the path.
        remedy: What the user can do; files with the same remedy are
            reported together.
    """

    def __init__(self, path: str, fault: str, remedy: str) -> None:
        super().__init__(f'{path} {fault}: {remedy}.')
        self.path = path
        self.fault = fault
        self.remedy = remedy


def raise_faults(faults: Sequence[FileFault]) -> NoReturn:
    """Report the first fault and all others with the same remedy.

    Raises:
        UserInputError: Always; one sentence.
    """
    remedy = faults[0].remedy
    same = [f'{f.path} {f.fault}' for f in faults if f.remedy == remedy]
    raise UserInputError(f'{first_few(same)}: {remedy}.')


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
        size: (width, height) of the image in pixels; None if the file
            does not give a usable one.
        objects: In the order of the file; the boxes of their ``<part>``
            elements are left out.
    """

    size: tuple[int, int] | None
    objects: list[AnnotatedObject]


def read_annotation(path: str) -> Annotation:
    """Read a PASCAL VOC annotation.

    Raises:
        FileFault: The file is not a VOC annotation, an object lacks its name
            or box, a coordinate is not a number, or corners are swapped.
    """
    root = _read_root(path)
    objects = [_read_object(node, path) for node in root.findall('object')]
    return Annotation(_read_size(root), objects)


def _read_root(path: str) -> ET.Element:
    remedy = 'restore the annotation or take it out of the image list'
    try:
        root = ET.parse(path).getroot()
    except OSError as error:
        fault = f'cannot be read ({error.strerror})'
        raise FileFault(path, fault, remedy) from None
    except (ET.ParseError, LookupError, ValueError) as error:
        raise FileFault(path, f'is not XML ({error})', remedy) from None
    if root.tag != 'annotation':
        fault = f'holds <{root.tag}> in place of a VOC <annotation>'
        raise FileFault(path, fault, remedy)
    return root


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
        raise FileFault(path, f"has a '{name}' without <bndbox>", _COMPLETE)
    difficult = (node.findtext('difficult') or '').strip() == '1'
    return AnnotatedObject(name, _read_box(corners, name, path), difficult)


def _read_box(
    node: ET.Element, name: str, path: str
) -> tuple[float, float, float, float]:
    texts = {child.tag: child.text for child in node}
    values = [_read_corner(texts, key, name, path) for key in _CORNERS]
    xmin, ymin, xmax, ymax = values
    if xmax < xmin or ymax < ymin:
        fault = f"has an inverted '{name}' box ({_as_text(values)})"
        remedy = (
            'xmin may not exceed xmax, nor ymin ymax; swap the corners back'
        )
        raise FileFault(path, fault, remedy)
    return xmin, ymin, xmax, ymax


def _read_corner(
    texts: dict[str, str | None], key: str, name: str, path: str
) -> float:
    if key not in texts:
        fault = f"has a '{name}' box without <{key}>"
        raise FileFault(path, fault, _COMPLETE)
    try:
        value = float(texts[key] or '')
        int(value)  # neither nan nor inf
    except (ValueError, OverflowError):
        fault = f"has a '{name}' box with {key} '{texts[key] or ''}'"
        remedy = 'coordinates are finite numbers, in pixels'
        raise FileFault(path, fault, remedy) from None
    return value


def _as_text(values: Sequence[float]) -> str:
    return ', '.join(
        f'{key} {value:g}' for key, value in zip(_CORNERS, values, strict=True)
    )
