"""A VOC devkit of drawn shapes: data for the demo and for tests.

The images hold one to four filled shapes on textured backgrounds. Colour says
nothing about the class: a detector has to look at the shape. The same
arguments give the same images (with the same OpenCV and NumPy), and image
``i`` does not depend on how many there are.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from sb_mm.arguments import check_number
from sb_mm.errors import UserInputError

from .annotation import AnnotatedObject

MANIFEST = 'synthetic_voc.json'
COUNT_WEIGHTS = (0.1, 0.2, 0.3, 0.4)  # of images with 1, 2, 3, 4 shapes
SIDE_RANGE = (0.22, 0.6)  # longer side of a box / shorter side of an image
MAX_ROTATION = 20.0  # degrees, so that a square stays apart from a diamond
DIFFICULT_RATE = 0.05
CROPPED_RATE = 0.08
CROPPED_PART = 0.3  # of a shape's side that may lie outside the image
MIN_CONTRAST = 120.0  # RGB distance (0..441) of a shape to its background
# So that more training images move no test image.
FIRST_TEST = 100_001

_CIRCLE = np.exp(2j * np.pi * np.arange(48) / 48)
# Contours around 0, as x + y j; y points down, and a second one is a hole.
_CONTOURS = {
    'circle': [_CIRCLE],
    'square': [np.array([1 + 1j, -1 + 1j, -1 - 1j, 1 - 1j])],
    'triangle': [np.array([-1j, 1 + 0.8j, -1 + 0.8j])],
    'star': [
        -1j * np.exp(0.2j * np.pi * np.arange(10)) * np.tile([1, 0.45], 5)
    ],
    'cross': [
        np.outer(1j ** np.arange(4), [1 + 0.36j, 0.36 + 0.36j, 0.36 + 1j])
    ],
    'ring': [_CIRCLE, 0.55 * _CIRCLE],
}
SYNTHETIC_CLASSES = tuple(_CONTOURS)

_OBJECT = (
    '<object><name>{}</name><difficult>{:d}</difficult><bndbox><xmin>{}</xmin>'
    '<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
)
_ANNOTATION = (
    '<annotation><filename>{}</filename><size><width>{}</width>'
    '<height>{}</height><depth>3</depth></size>{}</annotation>'
)


def make_synthetic_voc(
    out: str | Path,
    num_train: int = 240,
    num_test: int = 60,
    seed: int = 0,
    size: int = 320,
) -> bool:
    """Draw a VOC devkit into a folder.

    Args:
        out: The devkit's folder; ``out/VOC2007`` holds the images.
        num_train: Images in ``trainval.txt``; every second one is in
            ``train.txt``, the others are in ``val.txt``.
        num_test: Images in ``test.txt``.
        seed: Of the drawings.
        size: Longer side in pixels; the shorter one is 75 % to 100 % of it.

    Returns:
        True when the devkit was drawn, False when ``out`` held it already.

    Raises:
        UserInputError: If an argument is out of range, or ``out`` holds
            another ``VOC2007``.
        OSError: If ``out`` cannot be written.
    """
    check_number('num_train', num_train, 2, 99_999, integer=True)
    check_number('num_test', num_test, 1, 99_999, integer=True)
    check_number('seed', seed, 0, 2**63 - 1, integer=True)
    check_number('size', size, 64, 2048, integer=True)
    folder = Path(out).expanduser() / 'VOC2007'
    manifest = json.dumps([num_train, num_test, seed, size])
    if folder.exists():
        known = folder / MANIFEST
        if known.is_file() and known.read_text() == manifest:
            return False
        raise UserInputError(
            f'{folder} holds something else than the images asked for: '
            'choose another folder, or delete that one.'
        )
    train = range(1, num_train + 1)
    test = range(FIRST_TEST, FIRST_TEST + num_test)
    lists = dict(trainval=train, train=train[::2], val=train[1::2], test=test)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix='.drawing', dir=folder.parent) as workspace:
        new = Path(workspace, 'VOC2007')
        _write(new, lists, seed, size)
        (new / MANIFEST).write_text(manifest)
        new.rename(folder)
    return True


def _write(
    root: Path, lists: Mapping[str, range], seed: int, size: int
) -> None:
    """Draw and write what is listed, in the layout of VOC."""
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / name).mkdir(parents=True)
    for split, numbers in lists.items():
        text = ''.join(f'{number:06}\n' for number in numbers)
        (root / f'ImageSets/Main/{split}.txt').write_text(text)
    for number in (*lists['trainval'], *lists['test']):
        image, objects = draw_image(seed, number, size)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
        data = cv2.imencode('.jpg', image[..., ::-1], quality)[1]
        (root / f'JPEGImages/{number:06}.jpg').write_bytes(data.tobytes())
        text = ''.join(_OBJECT.format(n, d, *box) for n, box, d in objects)
        head = f'{number:06}.jpg', image.shape[1], image.shape[0]
        text = _ANNOTATION.format(*head, text)
        (root / f'Annotations/{number:06}.xml').write_text(text)


def draw_image(
    seed: int, number: int, size: int = 320
) -> tuple[np.ndarray, list[AnnotatedObject]]:
    """Draw the image of that file name, ``(H, W, 3)`` RGB, and its shapes."""
    rng = np.random.default_rng((seed, number))
    shorter = int(rng.integers(size * 3 // 4, size + 1))
    sides = (shorter, size) if rng.random() < 0.7 else (size, shorter)
    canvas = _background(rng, *sides)
    objects = []
    for name, mask in _placed(rng, *sides):
        difficult = bool(rng.random() < DIFFICULT_RATE)
        colour = behind = canvas[mask].mean(axis=0)
        while np.linalg.norm(colour - behind) < MIN_CONTRAST:
            colour = rng.uniform(0, 255, 3)
        canvas[mask] += (0.4 if difficult else 1) * (colour - canvas[mask])
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        box = [x + 1, y + 1, x + width, y + height]
        objects.append(AnnotatedObject(name, box, difficult))
    canvas = cv2.GaussianBlur(canvas, (0, 0), 0.6)
    canvas += rng.normal(0, 4, canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), objects


def _placed(
    rng: np.random.Generator, height: int, width: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield 1 to 4 shapes, and the pixels of each: ``(H, W)`` bool."""
    taken = np.zeros((height, width), bool)
    for _ in range(1 + rng.choice(4, p=COUNT_WEIGHTS)):
        name = str(rng.choice(SYNTHETIC_CLASSES))
        for _ in range(30):  # until it is apart from the others
            mask = _mask(name, rng, height, width)
            if not taken[mask].any():
                taken |= mask
                yield name, mask
                break


def _mask(
    name: str, rng: np.random.Generator, height: int, width: int
) -> np.ndarray:
    """Turn, stretch, scale and move a shape, a few across the border."""
    turn = np.exp(1j * np.deg2rad(rng.uniform(-MAX_ROTATION, MAX_ROTATION)))
    ratio = rng.uniform(0.8, 1.25)
    stretch = np.sqrt([ratio, 1 / ratio])
    turned = [turn * contour.ravel() for contour in _CONTOURS[name]]
    contours = [np.stack([c.real, c.imag], axis=1) * stretch for c in turned]
    start, extent = contours[0].min(axis=0), np.ptp(contours[0], axis=0)
    low, high = SIDE_RANGE
    # The root makes large shapes, which are quicker to learn, more frequent.
    side = (low + (high - low) * np.sqrt(rng.random())) * min(height, width)
    scale = side / extent.max()
    outside = CROPPED_PART if rng.random() < CROPPED_RATE else 0.0
    margin = outside * scale * extent
    # The last pixel is at width - 1, and rounding may add one.
    room = np.array([width - 2, height - 2]) - scale * extent
    offset = rng.uniform(-margin, room + margin)
    points = [np.rint((c - start) * scale + offset) for c in contours]
    mask = np.zeros((height, width), np.uint8)
    return cv2.fillPoly(mask, [p.astype(np.int32) for p in points], 1) > 0


def _background(
    rng: np.random.Generator, height: int, width: int
) -> np.ndarray:
    """Draw stripes or blobs on a blend of colours, ``(H, W, 3)`` float."""
    canvas = np.full((height, width, 3), rng.uniform(50, 205))
    blend = (2, 2), 30
    texture = rng.integers(5, 33, 2), rng.uniform(10, 25)
    for cells, strength in (blend, texture):
        grid = strength * rng.uniform(-1, 1, (*cells, 3))
        size = width, height
        canvas += cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)
    return canvas
