"""Fixtures that several test modules share."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from annotation_file import annotation_xml
from PIL import Image

import sb_mm  # noqa: F401  (brings operators before a test imports a host)

CLASSES = ('square', 'disc')


@pytest.fixture
def tiny_devkit(tmp_path) -> Callable[..., Path]:
    """Write a devkit of plain images and return its root.

    `tiny_devkit()` makes `<root>/{Annotations,JPEGImages}` with `a.jpg`,
    `b.png`, `c.jpg`, `d.jpg` of 64 x 48 pixels, each with an object of every
    class, and the lists `train.txt` (a, b, c) and `test.txt` (d) in
    `<root>/ImageSets/Main`. `sub='VOC2007'` puts all of it one folder deeper;
    a second call with another `sub` adds to the same root.
    """

    def build(
        sub: str = '',
        files: Sequence[str] = ('a.jpg', 'b.png', 'c.jpg', 'd.jpg'),
        lists: dict[str, str] | None = None,
        classes: Sequence[str] = CLASSES,
    ) -> Path:
        root, size = tmp_path / 'devkit', (64, 48)
        for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
            (root / sub / folder).mkdir(parents=True, exist_ok=True)
        boxes = [(1 + 30 * i, 1, 31 + 30 * i, 40) for i in range(2)]
        xml = annotation_xml(list(zip(classes, boxes, strict=False)), size)
        for i, file in enumerate(files):
            image = Image.new('RGB', size, (40 * i % 256, 120, 90))
            image.paste('red', boxes[0])
            image.save(root / sub / 'JPEGImages' / file)
            stem = Path(file).stem
            (root / sub / f'Annotations/{stem}.xml').write_text(xml)
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
