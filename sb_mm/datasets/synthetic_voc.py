"""A VOC devkit of drawn shapes: data for the demo and for tests.

The images hold one to four filled shapes on textured backgrounds, with
genuine VOC folders, lists and annotations. Colour says nothing about the
class, so that a detector has to look at the shape. The same arguments give
the same bytes (with the same OpenCV and NumPy), and image ``i`` does not
depend on how many images there are.
"""

import json
import os
import shutil
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sb_mm.errors import UserInputError

SYNTHETIC_CLASSES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')

MANIFEST = 'synthetic_voc.json'
YEAR_FOLDER = 'VOC2007'
GENERATOR_VERSION = 2  # to be raised when the same seed draws other images

COUNT_WEIGHTS = (0.1, 0.2, 0.3, 0.4)  # of images with 1, 2, 3, 4 shapes
SIDE_RANGE = (0.22, 0.6)  # longer side of a box / shorter side of an image
MAX_OVERLAP = 0.15  # intersection / smaller box, which keeps IoU below 0.2
MAX_ROTATION = 20.0  # degrees, so that a square stays apart from a diamond
ASPECT_RANGE = (0.8, 1.25)
DIFFICULT_RATE = 0.05
CROPPED_RATE = 0.08
CROPPED_PART = 0.3  # of a shape's side that may lie outside the image
MIN_CONTRAST = 120.0  # RGB distance (0..441) of a shape to its background
JPEG_QUALITY = 92

# Test images have numbers of their own: asking for more training images
# moves none of them.
FIRST_NUMBER = {'trainval': 1, 'test': 100_001}
LIMITS = {
    'num_train': (2, 99_999),
    'num_test': (1, 99_999),
    'seed': (0, 2**63 - 1),
    'size': (64, 2048),
}


@dataclass(frozen=True)
class DrawnShape:
    """One shape of an image.

    Attributes:
        name: Its class, one of ``SYNTHETIC_CLASSES``.
        mask: The pixels that show it, ``(H, W)`` bool.
        difficult: Whether it is drawn faintly and flagged as difficult.
        truncated: Whether a part of it lies outside the image.
    """

    name: str
    mask: np.ndarray
    difficult: bool
    truncated: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The tight VOC box ``(xmin, ymin, xmax, ymax)`` in pixels.

        Corners count from 1 and are inclusive: a shape that fills an image
        has ``(1, 1, width, height)``.
        """
        columns = np.flatnonzero(self.mask.any(axis=0)) + 1
        rows = np.flatnonzero(self.mask.any(axis=1)) + 1
        return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def make_synthetic_voc(
    out: str | Path,
    num_train: int = 240,
    num_test: int = 60,
    seed: int = 0,
    size: int = 320,
    force: bool = False,
    progress: bool = False,
) -> bool:
    """Draw a VOC devkit into a folder.

    Args:
        out: The devkit's folder; ``out/VOC2007`` holds the images.
        num_train: Number of images listed in ``trainval.txt``; every
            second one is in ``train.txt``, the others are in ``val.txt``.
        num_test: Number of images listed in ``test.txt``.
        seed: Seed of the drawings.
        size: Longer side of an image in pixels; the shorter one varies
            between 75 % and 100 % of it.
        force: Whether a synthetic devkit with other arguments that ``out``
            already holds is replaced. Anything else is never deleted.
        progress: Whether a progress bar is shown.

    Returns:
        True when the devkit was drawn, False when ``out`` held it already.

    Raises:
        UserInputError: If an argument is out of range, ``out`` holds
            something else, or it cannot be written.
    """
    parameters = {
        'num_train': num_train,
        'num_test': num_test,
        'seed': seed,
        'size': size,
    }
    _check(parameters)
    out = Path(out).expanduser().resolve()
    manifest = {
        'generator': GENERATOR_VERSION,
        'classes': list(SYNTHETIC_CLASSES),
        **parameters,
    }
    if _holds(out, manifest):
        return False
    _refuse_foreign(out, force)
    with _replacing(out) as folder:
        _write_devkit(folder, manifest, progress)
    return True


def draw_image(
    seed: int, number: int, size: int = 320
) -> tuple[np.ndarray, list[DrawnShape]]:
    """Draw one image.

    Args:
        seed: Seed of the devkit.
        number: The image's number, which is its file name.
        size: Longer side in pixels.

    Returns:
        The image, ``(H, W, 3)`` uint8 in RGB order, and what it shows.
    """
    rng = np.random.default_rng((seed, number))
    height, width = _image_shape(rng, size)
    canvas = _background(rng, height, width)
    shapes: list[DrawnShape] = []
    for outline, name, cropped in _place_shapes(rng, height, width):
        mask = _rasterize(outline, height, width)
        difficult = bool(rng.random() < DIFFICULT_RATE)
        _paint(canvas, mask, rng, opacity=0.4 if difficult else 1.0)
        shapes = [_covered(shape, mask) for shape in shapes]
        shapes.append(DrawnShape(name, mask, difficult, cropped))
    canvas = cv2.GaussianBlur(canvas, (0, 0), 0.6)
    canvas += rng.normal(0, 4, canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), shapes


def _check(parameters: dict[str, int]) -> None:
    """Raise a UserInputError for a number that is out of range."""
    for name, value in parameters.items():
        low, high = LIMITS[name]
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not is_integer or not low <= value <= high:
            raise UserInputError(
                f'{name} must be a whole number from {low} to {high}, but is '
                f'{value!r}.'
            )


# Where the devkit goes


def _holds(out: Path, manifest: dict) -> bool:
    """Tell whether a folder holds the very devkit that a manifest names."""
    try:
        if json.loads((out / MANIFEST).read_text()) != manifest:
            return False
    except (OSError, ValueError):
        return False
    numbers = [*_numbers('trainval', manifest), *_numbers('test', manifest)]
    year = out / YEAR_FOLDER
    return all(
        (year / 'JPEGImages' / f'{number:06}.jpg').is_file()
        and (year / 'Annotations' / f'{number:06}.xml').is_file()
        for number in numbers
    )


def _refuse_foreign(out: Path, force: bool) -> None:
    """Raise a UserInputError if a folder holds what must not be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserInputError(f'{out} is a file; give a folder to draw into.')
    names = {entry.name for entry in out.iterdir()}
    if not names:
        return
    if MANIFEST not in names or names - {MANIFEST, YEAR_FOLDER}:
        raise UserInputError(
            f'{out} holds files that were not drawn by this tool and are '
            'never deleted; choose another folder.'
        )
    if not force:
        raise UserInputError(
            f'{out} holds a synthetic devkit with other settings or missing '
            'files; choose another folder or replace it with --force '
            '(force=True).'
        )


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``out`` when all went well."""
    workspace = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        workspace = Path(
            tempfile.mkdtemp(prefix=f'.{out.name}.', dir=out.parent)
        )
        new = workspace / 'new'
        new.mkdir()
        yield new
        _swap(new, out, workspace / 'old')
    except OSError as error:
        raise UserInputError(
            f'{out} cannot be written ({error.strerror}); choose another '
            'folder.'
        ) from error
    finally:
        if workspace is not None:
            shutil.rmtree(workspace, ignore_errors=True)


def _swap(new: Path, out: Path, old: Path) -> None:
    """Rename ``new`` to ``out`` and what was there to ``old``."""
    if not out.exists():
        os.rename(new, out)
        return
    os.rename(out, old)
    try:
        os.rename(new, out)
    except BaseException:
        os.rename(old, out)
        raise


# What the devkit holds


def _numbers(split: str, manifest: dict) -> range:
    """Give the image numbers of ``trainval`` or ``test``."""
    count = manifest['num_train' if split == 'trainval' else 'num_test']
    return range(FIRST_NUMBER[split], FIRST_NUMBER[split] + count)


def _write_devkit(folder: Path, manifest: dict, progress: bool) -> None:
    """Write images, annotations, lists and the manifest."""
    year = folder / YEAR_FOLDER
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (year / name).mkdir(parents=True)
    trainval = _numbers('trainval', manifest)
    test = _numbers('test', manifest)
    for number in _track([*trainval, *test], progress):
        _write_image(year, number, manifest)
    lists = {
        'trainval': trainval,
        'train': trainval[::2],
        'val': trainval[1::2],
        'test': test,
    }
    for split, numbers in lists.items():
        text = ''.join(f'{number:06}\n' for number in numbers)
        (year / 'ImageSets' / 'Main' / f'{split}.txt').write_text(text)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + '\n')


def _track(numbers: list[int], progress: bool) -> Iterable[int]:
    """Iterate over numbers, with a progress bar if wanted."""
    if not progress:
        return numbers
    from rich.progress import track

    return track(numbers, 'drawing', transient=True)


def _write_image(year: Path, number: int, manifest: dict) -> None:
    """Write one image and its annotation."""
    image, shapes = draw_image(manifest['seed'], number, manifest['size'])
    _, data = cv2.imencode(
        '.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    name = f'{number:06}'
    (year / 'JPEGImages' / f'{name}.jpg').write_bytes(data.tobytes())
    root = _annotation(f'{name}.jpg', image.shape, shapes)
    ET.indent(root, '\t')
    text = ET.tostring(root, encoding='unicode') + '\n'
    (year / 'Annotations' / f'{name}.xml').write_text(text)


def _annotation(
    filename: str, shape: tuple[int, ...], shapes: list[DrawnShape]
) -> ET.Element:
    """Build the VOC annotation of an image of shape ``(H, W, 3)``."""
    height, width, depth = shape
    root = ET.Element('annotation')
    _add(root, folder=YEAR_FOLDER, filename=filename)
    source = ET.SubElement(root, 'source')
    _add(source, database='sb_mm synthetic shapes', annotation='drawn')
    size = ET.SubElement(root, 'size')
    _add(size, width=width, height=height, depth=depth)
    _add(root, segmented=0)
    for drawn in shapes:
        _add_object(root, drawn)
    return root


def _add_object(root: ET.Element, drawn: DrawnShape) -> None:
    """Append one shape to an annotation."""
    element = ET.SubElement(root, 'object')
    _add(
        element,
        name=drawn.name,
        pose='Unspecified',
        truncated=int(drawn.truncated),
        difficult=int(drawn.difficult),
    )
    names = ('xmin', 'ymin', 'xmax', 'ymax')
    box = dict(zip(names, drawn.box, strict=True))
    _add(ET.SubElement(element, 'bndbox'), **box)


def _add(parent: ET.Element, **values: str | int) -> None:
    """Append one child with a text for each keyword."""
    for tag, value in values.items():
        ET.SubElement(parent, tag).text = str(value)


# Shapes: contours around the origin, (K, 2) x and y. Two contours make a hole.


def _circle(radius: float = 1.0) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2, 0.45, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _cross(arm: float = 0.36) -> np.ndarray:
    quarter = np.array([[arm, 1.0], [arm, arm], [1.0, arm]])
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    turned = [quarter]
    for _ in range(3):
        turned.append(turned[-1] @ turn)
    return np.concatenate(turned)


_CONTOURS: dict[str, Callable[[], list[np.ndarray]]] = {
    'circle': lambda: [_circle()],
    'square': lambda: [np.array([[-1, -1], [1, -1], [1, 1], [-1, 1.0]])],
    'triangle': lambda: [np.array([[0, -1], [1, 0.8], [-1, 0.8]])],
    'star': lambda: [_star()],
    'cross': lambda: [_cross()],
    'ring': lambda: [_circle(), _circle(0.55)],
}


def _contours(
    name: str, side: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Turn and stretch a shape; its extent starts at 0 and is ``side``."""
    angle = np.deg2rad(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
    stretch = np.sqrt(rng.uniform(*ASPECT_RANGE))
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.diag([stretch, 1 / stretch]) @ [[cos, sin], [-sin, cos]]
    contours = [contour @ matrix for contour in _CONTOURS[name]()]
    low = contours[0].min(axis=0)
    scale = side / np.ptp(contours[0], axis=0).max()
    return [(contour - low) * scale for contour in contours]


def _place_shapes(
    rng: np.random.Generator, height: int, width: int
) -> list[tuple[list[np.ndarray], str, bool]]:
    """Choose the contours, name and cropping of one to four shapes."""
    placed, boxes = [], []
    counts = range(1, len(COUNT_WEIGHTS) + 1)
    for _ in range(rng.choice(counts, p=COUNT_WEIGHTS)):
        name = str(rng.choice(SYNTHETIC_CLASSES))
        for _ in range(30):
            contours = _position(name, rng, height, width)
            box = _visible_box(contours[0], height, width)
            if all(_overlap(box, other) < MAX_OVERLAP for other in boxes):
                cropped = not np.array_equal(box, _extent(contours[0]))
                placed.append((contours, name, cropped))
                boxes.append(box)
                break
    return placed


def _position(
    name: str, rng: np.random.Generator, height: int, width: int
) -> list[np.ndarray]:
    """Put a shape of random size somewhere, a few across the border."""
    low, high = SIDE_RANGE
    # The root makes large shapes, which are quicker to learn, more frequent.
    side = low + (high - low) * np.sqrt(rng.random())
    side *= min(height, width)
    contours = _contours(name, side, rng)
    extent = contours[0].max(axis=0)
    outside = CROPPED_PART if rng.random() < CROPPED_RATE else 0.0
    # The last pixel is at width - 1, and rounding may add one.
    room = np.array([width - 2, height - 2]) - extent
    offset = rng.uniform(-outside * extent, room + outside * extent)
    return [contour + offset for contour in contours]


def _extent(contour: np.ndarray) -> np.ndarray:
    """Give ``(x1, y1, x2, y2)`` of a contour."""
    return np.concatenate([contour.min(axis=0), contour.max(axis=0)])


def _visible_box(contour: np.ndarray, height: int, width: int) -> np.ndarray:
    """Give the part of a contour's extent that lies in the image."""
    limits = [width - 1, height - 1] * 2
    return np.clip(_extent(contour), 0, limits)


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Give the intersection of two boxes as a part of the smaller one."""
    low = np.maximum(box[:2], other[:2])
    high = np.minimum(box[2:], other[2:])
    smaller = min(np.prod(b[2:] - b[:2]) for b in (box, other))
    return float(np.prod(np.maximum(high - low, 0)) / smaller)


def _rasterize(
    contours: list[np.ndarray], height: int, width: int
) -> np.ndarray:
    """Fill contours (even-odd rule) and give the mask ``(H, W)``."""
    mask = np.zeros((height, width), np.uint8)
    points = [np.rint(contour).astype(np.int32) for contour in contours]
    cv2.fillPoly(mask, points, 1)
    return mask.astype(bool)


def _covered(shape: DrawnShape, mask: np.ndarray) -> DrawnShape:
    """Take from a shape the pixels that a later one hides."""
    visible = shape.mask & ~mask
    return DrawnShape(shape.name, visible, shape.difficult, shape.truncated)


# Paint


def _image_shape(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Choose height and width; the longer one is ``size``."""
    shorter = int(rng.integers(size * 3 // 4, size + 1))
    return (shorter, size) if rng.random() < 0.7 else (size, shorter)


def _paint(
    canvas: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    opacity: float,
) -> None:
    """Fill a mask with a shaded colour and a darker edge, in place."""
    behind = canvas[mask].mean(axis=0)
    paint = np.tile(_contrasting_colour(rng, behind), (*mask.shape, 1))
    slope = rng.uniform(-0.15, 0.15, 2)
    rows, columns = np.indices(mask.shape) / max(mask.shape) - 0.5
    paint *= (1 + slope[0] * rows + slope[1] * columns)[..., None]
    inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    paint[inside == 0] *= 0.6
    canvas[mask] += opacity * (paint[mask] - canvas[mask])


def _contrasting_colour(
    rng: np.random.Generator, behind: np.ndarray
) -> np.ndarray:
    """Draw RGB colours until one stands out from what is behind it."""
    for _ in range(100):
        colour = rng.uniform(0, 255, 3)
        if np.linalg.norm(colour - behind) > MIN_CONTRAST:
            break
    return colour


def _background(
    rng: np.random.Generator, height: int, width: int
) -> np.ndarray:
    """Draw a gradient with a texture on it, ``(H, W, 3)`` float."""
    texture = _TEXTURES[rng.integers(len(_TEXTURES))]
    amplitude = rng.uniform(10, 30, 3) * rng.choice([-1, 1], 3)
    canvas = _gradient(rng, height, width)
    return canvas + amplitude * texture(rng, height, width)[..., None]


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Blend two greyish colours along a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.indices((height, width))
    ramp = np.cos(angle) * columns + np.sin(angle) * rows
    ramp = (ramp - ramp.min()) / np.ptp(ramp)
    grey = rng.uniform(50, 205, (2, 1))
    colours = grey + rng.uniform(-30, 30, (2, 3))
    return colours[0] + ramp[..., None] * (colours[1] - colours[0])


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a wave of 12 to 60 pixels in a random direction, -1..1."""
    angle = rng.uniform(0, np.pi)
    rows, columns = np.indices((height, width))
    along = np.cos(angle) * columns + np.sin(angle) * rows
    return np.sin(2 * np.pi * along / rng.uniform(12, 60))


def _blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw smooth noise with blobs of 10 to 60 pixels, -1..1."""
    cell = rng.uniform(10, 60)
    grid = (int(height / cell) + 3, int(width / cell) + 3)
    coarse = rng.uniform(-1, 1, grid)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _grain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw noise with grains of about 2 pixels, mostly -1..1."""
    noise = rng.normal(0, 1.5, (height, width))
    return cv2.GaussianBlur(noise, (0, 0), 1.0)


_TEXTURES = (_stripes, _blobs, _grain)
