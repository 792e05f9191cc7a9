"""Fixtures that several test modules share."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import sb_mm  # noqa: F401  (brings operators before a test imports a host)

CLASSES = ('square', 'disc')
BACKGROUND = (90, 120, 90)
COLOURS = {'square': (220, 40, 40), 'disc': (40, 60, 220)}


def annotation_xml(
    objects: Sequence[tuple],
    size: tuple[int, int] | None = (64, 48),
) -> str:
    """Text of a VOC annotation.

    Args:
        objects: (name, (xmin, ymin, xmax, ymax)) or the same with the text
            of `<difficult>`.
        size: (width, height) of the image; None leaves `<size>` out.
    """
    parts = []
    if size is not None:
        width, height = size
        parts.append(
            f'<size><width>{width}</width><height>{height}</height>'
            '<depth>3</depth></size>'
        )
    for name, box, *difficult in objects:
        corners = zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True)
        bndbox = ''.join(f'<{key}>{value}</{key}>' for key, value in corners)
        flag = f'<difficult>{difficult[0]}</difficult>' if difficult else ''
        parts.append(
            f'<object><name>{name}</name>{flag}'
            f'<bndbox>{bndbox}</bndbox></object>'
        )
    return f'<annotation>{"".join(parts)}</annotation>'


def draw(path: Path, size: tuple[int, int], objects: Sequence[tuple]) -> None:
    """Draws the objects, `disc` round and all others square."""
    image = Image.new('RGB', size, BACKGROUND)
    pen = ImageDraw.Draw(image)
    for name, box, *_ in objects:
        shape = pen.ellipse if name == 'disc' else pen.rectangle
        shape([value - 1 for value in box], COLOURS.get(name, 'white'))
    image.save(path)


def random_objects(
    rng: random.Random, classes: Sequence[str], size: tuple[int, int]
) -> list[tuple]:
    """One or two objects that lie inside the image."""
    objects = []
    for _ in range(rng.randint(1, 2)):
        width, height = (rng.randint(side // 4, side // 2) for side in size)
        xmin = rng.randint(1, size[0] - width)
        ymin = rng.randint(1, size[1] - height)
        box = (xmin, ymin, xmin + width, ymin + height)
        objects.append((rng.choice(list(classes)), box))
    return objects


@pytest.fixture
def make_xml() -> Callable[..., str]:
    """See `annotation_xml`."""
    return annotation_xml


@pytest.fixture
def tiny_devkit(tmp_path) -> Callable[..., Path]:
    """Builds a devkit and returns its root.

    `tiny_devkit()` makes `<root>/{Annotations,JPEGImages}` with `a.jpg`,
    `b.png`, `c.jpg`, `d.jpg` of 64 x 48 pixels, objects of the classes
    `square` and `disc`, and the lists `train.txt` (a, b, c) and `test.txt`
    (d) in `<root>/ImageSets/Main`. `sub='VOC2007'` puts all of it one folder
    deeper; a second call with another `sub` adds to the same root.
    """

    def build(
        sub: str = '',
        files: Sequence[str] = ('a.jpg', 'b.png', 'c.jpg', 'd.jpg'),
        lists: dict[str, str] | None = None,
        classes: Sequence[str] = CLASSES,
        size: tuple[int, int] = (64, 48),
        seed: int = 0,
    ) -> Path:
        root = tmp_path / 'devkit'
        rng = random.Random(seed)
        for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
            (root / sub / folder).mkdir(parents=True, exist_ok=True)
        for file in files:
            objects = random_objects(rng, classes, size)
            draw(root / sub / 'JPEGImages' / file, size, objects)
            xml = root / sub / 'Annotations' / f'{Path(file).stem}.xml'
            xml.write_text(annotation_xml(objects, size))
        names = [Path(file).stem for file in files]
        default = {'train': names[:-1], 'test': names[-1:]}
        for name, text in (lists or default).items():
            text = text if isinstance(text, str) else '\n'.join(text) + '\n'
            (root / sub / f'ImageSets/Main/{name}.txt').write_text(text)
        return root

    return build


@pytest.fixture(autouse=True)
def _no_scope_stays_behind() -> Iterator[None]:
    """A run in this process leaves its default scope to the next test."""
    scope = pytest.importorskip('mmengine.registry').DefaultScope
    before = dict(scope._instance_dict)
    yield
    scope._instance_dict.clear()
    scope._instance_dict.update(before)
