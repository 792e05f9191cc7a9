"""A VOC devkit of drawn shapes: data for the demo and for tests.

The images hold one to four filled shapes on textured backgrounds, with
genuine VOC folders, lists and annotations. Colour says nothing about the
class, so that a detector has to look at the shape. The same arguments give
the same images (with the same OpenCV and NumPy), and image ``i`` does not
depend on how many images there are.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from rich.progress import track

from sb_mm.arguments import check_number
from sb_mm.errors import UserInputError

SYNTHETIC_CLASSES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')

MANIFEST = 'synthetic_voc.json'
YEAR_FOLDER = 'VOC2007'
COUNT_WEIGHTS = (0.1, 0.2, 0.3, 0.4)  # of images with 1, 2, 3, 4 shapes
SIDE_RANGE = (0.22, 0.6)  # longer side of a box / shorter side of an image
MAX_OVERLAP = 0.15  # intersection / smaller box, which keeps IoU below 0.2
MAX_ROTATION = 20.0  # degrees, so that a square stays apart from a diamond
DIFFICULT_RATE = 0.05
CROPPED_RATE = 0.08
CROPPED_PART = 0.3  # of a shape's side that may lie outside the image
MIN_CONTRAST = 120.0  # RGB distance (0..441) of a shape to its background
# Test images have numbers of their own: asking for more training images
# moves none of them.
FIRST_TEST = 100_001
_OBJECT = (
    '<object><name>{}</name><difficult>{:d}</difficult><bndbox><xmin>{}</xmin>'
    '<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
)
_ANNOTATION = (
    '<annotation><filename>{}</filename><size><width>{}</width>'
    '<height>{}</height><depth>3</depth></size>{}</annotation>'
)


@dataclass(frozen=True)
class DrawnShape:
    """One shape of an image; a difficult one is drawn faintly."""

    name: str
    mask: np.ndarray  # the pixels that show it, (H, W) bool
    difficult: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The tight VOC box: first and last pixels, counted from 1."""
        x, y, width, height = cv2.boundingRect(self.mask.astype(np.uint8))
        return x + 1, y + 1, x + width, y + height


def make_synthetic_voc(
    out: str | Path,
    num_train: int = 240,
    num_test: int = 60,
    seed: int = 0,
    size: int = 320,
    force: bool = False,
) -> bool:
    """Draw a VOC devkit into a folder.

    Args:
        out: The devkit's folder; ``out/VOC2007`` holds the images.
        num_train: Number of images listed in ``trainval.txt``; every
            second one is in ``train.txt``, the others are in ``val.txt``.
        num_test: Number of images listed in ``test.txt``.
        seed: Seed of the drawings.
        size: Longer side of an image in pixels; the shorter one is 75 % to
            100 % of it.
        force: Replace a synthetic devkit with other arguments that ``out``
            already holds. Anything else is never deleted.

    Returns:
        True when the devkit was drawn, False when ``out`` held it already.

    Raises:
        UserInputError: If an argument is out of range, ``out`` holds
            something else, or it cannot be written.
    """
    check_number('num_train', num_train, 2, 99_999, integer=True)
    check_number('num_test', num_test, 1, 99_999, integer=True)
    check_number('seed', seed, 0, 2**63 - 1, integer=True)
    check_number('size', size, 64, 2048, integer=True)
    out = Path(out).expanduser().resolve()
    arguments = dict(
        num_train=num_train, num_test=num_test, seed=seed, size=size
    )
    train = [f'{i:06}' for i in range(1, num_train + 1)]
    test = [f'{i:06}' for i in range(FIRST_TEST, FIRST_TEST + num_test)]
    lists = dict(trainval=train, train=train[::2], val=train[1::2], test=test)
    try:
        if _is_there(out, arguments, force):
            return False
        out.parent.mkdir(parents=True, exist_ok=True)
        prefix = f'.{out.name}.'
        with TemporaryDirectory(prefix=prefix, dir=out.parent) as workspace:
            new = Path(workspace, 'new')
            _write(new / YEAR_FOLDER, lists, seed, size)
            # Last: a devkit without it was not finished.
            (new / MANIFEST).write_text(json.dumps(arguments))
            if out.exists():
                shutil.rmtree(out)
            new.rename(out)
    except OSError as error:
        raise UserInputError(
            f'{out} cannot be written ({error.strerror}): choose another '
            'folder.'
        ) from error
    return True


def _is_there(out: Path, arguments: dict, force: bool) -> bool:
    """Tell whether ``out`` holds the devkit, or raise if it must stay."""
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if not names:
        return False
    if names != {MANIFEST, YEAR_FOLDER}:
        raise UserInputError(
            f'{out} holds files that were not drawn by this tool and are '
            'never deleted: choose another folder.'
        )
    if json.loads((out / MANIFEST).read_text()) == arguments:
        return True
    if not force:
        raise UserInputError(
            f'{out} holds a synthetic devkit with other settings: choose '
            'another folder or replace it with --force (force=True).'
        )
    return False


def _write(
    root: Path, lists: Mapping[str, Sequence[str]], seed: int, size: int
) -> None:
    """Draw and write what is listed, in the layout of VOC."""
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / name).mkdir(parents=True)
    for split, names in lists.items():
        text = ''.join(f'{name}\n' for name in names)
        (root / f'ImageSets/Main/{split}.txt').write_text(text)
    names = [*lists['trainval'], *lists['test']]
    for name in track(names, 'drawing', transient=True):
        image, shapes = draw_image(seed, int(name), size)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
        data = cv2.imencode('.jpg', image[..., ::-1], quality)[1]
        (root / f'JPEGImages/{name}.jpg').write_bytes(data.tobytes())
        text = ''.join(
            _OBJECT.format(shape.name, shape.difficult, *shape.box)
            for shape in shapes
        )
        height, width, _ = image.shape
        text = _ANNOTATION.format(f'{name}.jpg', width, height, text)
        (root / f'Annotations/{name}.xml').write_text(text, 'utf-8')


def draw_image(
    seed: int, number: int, size: int = 320
) -> tuple[np.ndarray, list[DrawnShape]]:
    """Draw an image ``(H, W, 3)``, uint8 in RGB order, and its shapes.

    Args:
        seed: Seed of the devkit.
        number: The image's number, which is its file name.
        size: Longer side in pixels.
    """
    rng = np.random.default_rng((seed, number))
    shorter = int(rng.integers(size * 3 // 4, size + 1))
    sides = (shorter, size) if rng.random() < 0.7 else (size, shorter)
    canvas = _background(rng, *sides)
    shapes: list[DrawnShape] = []
    for name, contours in _placed(rng, *sides):
        mask = np.zeros(sides, np.uint8)
        cv2.fillPoly(mask, [np.rint(c).astype(np.int32) for c in contours], 1)
        mask = mask.astype(bool)
        difficult = bool(rng.random() < DIFFICULT_RATE)
        _paint(canvas, mask, rng, opacity=0.4 if difficult else 1.0)
        shapes = [replace(s, mask=s.mask & ~mask) for s in shapes]
        shapes.append(DrawnShape(name, mask, difficult))
    canvas = cv2.GaussianBlur(canvas, (0, 0), 0.6)
    canvas += rng.normal(0, 4, canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), shapes


def _placed(
    rng: np.random.Generator, height: int, width: int
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield the names and contours of 1 to 4 shapes."""
    boxes: list[np.ndarray] = []
    for _ in range(rng.choice([1, 2, 3, 4], p=COUNT_WEIGHTS)):
        name = str(rng.choice(SYNTHETIC_CLASSES))
        for _ in range(30):  # until it hardly overlaps the others
            contours = _outline(name, rng, height, width)
            box = np.r_[contours[0].min(axis=0), contours[0].max(axis=0)]
            box = box.clip(0, [width - 1, height - 1] * 2)
            if all(_overlap(box, other) < MAX_OVERLAP for other in boxes):
                boxes.append(box)
                yield name, contours
                break


def _corners(name: str) -> list[np.ndarray]:
    """Return contours ``(K, 2)`` x, y around 0; a second one is a hole."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    round_ = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.arange(10) * np.pi / 5 - np.pi / 2
    spikes = np.stack([np.cos(points), np.sin(points)], axis=1)
    arm = 0.36
    quarter = np.array([[arm, 1.0], [arm, arm], [1.0, arm]])
    turns = [np.linalg.matrix_power([[0, -1], [1, 0]], k) for k in range(4)]
    return {
        'circle': [round_],
        'square': [np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])],
        'triangle': [np.array([[0, -1], [1, 0.8], [-1, 0.8]])],
        'star': [spikes * np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]],
        'cross': [np.concatenate([quarter @ turn for turn in turns])],
        'ring': [round_, 0.55 * round_],
    }[name]


def _outline(
    name: str, rng: np.random.Generator, height: int, width: int
) -> list[np.ndarray]:
    """Turn, stretch, scale and move a shape, a few across the border."""
    angle = np.deg2rad(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
    stretch = np.sqrt(rng.uniform(0.8, 1.25))
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.diag([stretch, 1 / stretch]) @ [[cos, sin], [-sin, cos]]
    contours = [contour @ matrix for contour in _corners(name)]
    low, high = SIDE_RANGE
    # The root makes large shapes, which are quicker to learn, more frequent.
    side = (low + (high - low) * np.sqrt(rng.random())) * min(height, width)
    start = contours[0].min(axis=0)
    scale = side / np.ptp(contours[0], axis=0).max()
    contours = [(contour - start) * scale for contour in contours]
    extent = contours[0].max(axis=0)
    outside = CROPPED_PART if rng.random() < CROPPED_RATE else 0.0
    # The last pixel is at width - 1, and rounding may add one.
    room = np.array([width - 2, height - 2]) - extent
    offset = rng.uniform(-outside * extent, room + outside * extent)
    return [contour + offset for contour in contours]


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection of two boxes as a part of the smaller one."""
    low = np.maximum(box[:2], other[:2])
    high = np.minimum(box[2:], other[2:])
    smaller = min(np.prod(b[2:] - b[:2]) for b in (box, other))
    return float(np.prod(np.maximum(high - low, 0)) / smaller)


def _paint(
    canvas: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    opacity: float,
) -> None:
    """Fill a mask with a colour that stands out, with a darker edge."""
    behind = canvas[mask].mean(axis=0)
    colour = rng.uniform(0, 255, 3)
    while np.linalg.norm(colour - behind) < MIN_CONTRAST:
        colour = rng.uniform(0, 255, 3)
    inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    paint = colour * np.where(inside[mask], 1.0, 0.6)[:, None]
    canvas[mask] += opacity * (paint - canvas[mask])


def _background(
    rng: np.random.Generator, height: int, width: int
) -> np.ndarray:
    """Draw stripes or blobs on a blend of two greys, ``(H, W, 3)`` float."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.indices((height, width))
    along = np.cos(angle) * columns + np.sin(angle) * rows
    ramp = (along - along.min()) / np.ptp(along)
    colours = rng.uniform(50, 205, (2, 1)) + rng.uniform(-30, 30, (2, 3))
    canvas = colours[0] + ramp[..., None] * (colours[1] - colours[0])
    cell = rng.uniform(10, 60)  # pixels
    if rng.random() < 0.5:
        texture = np.sin(2 * np.pi * along / cell)
    else:
        cells = int(height / cell) + 3, int(width / cell) + 3
        coarse = rng.uniform(-1, 1, cells)
        sides = width, height
        texture = cv2.resize(coarse, sides, interpolation=cv2.INTER_CUBIC)
    return canvas + rng.uniform(10, 30, 3) * texture[..., None]
