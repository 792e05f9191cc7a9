"""The drawn devkit: what is in it, and how it is put in place."""

import itertools
import os
import runpy
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest

from sb_mm.datasets import synthetic_voc
from sb_mm.datasets.synthetic_voc import (
    SYNTHETIC_CLASSES,
    DrawnShape,
    draw_image,
    make_synthetic_voc,
)
from sb_mm.errors import UserInputError

TOOL = Path(__file__).parents[2] / 'tools' / 'make_synthetic_voc.py'
SMALL = {'num_train': 4, 'num_test': 2, 'size': 96}


@pytest.fixture(scope='module')
def images():
    """Eighty images with about 190 shapes."""
    return [draw_image(seed=3, number=n, size=160) for n in range(1, 81)]


@pytest.fixture(scope='module')
def shapes(images):
    return [shape for _, drawn in images for shape in drawn]


def contents(folder):
    """Map the files below a folder to their bytes."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Images


def test_box_counts_from_one_and_includes_both_corners():
    full = DrawnShape('square', np.ones((40, 60), bool), False, False)
    assert full.box == (1, 1, 60, 40)
    mask = np.zeros((40, 60), bool)
    mask[5, 7] = True
    assert DrawnShape('square', mask, False, False).box == (8, 6, 8, 6)


def test_written_boxes_are_tight_around_the_visible_pixels(tmp_path):
    make_synthetic_voc(tmp_path / 'kit', num_train=12, num_test=1, size=128)
    for number in range(1, 13):
        path = tmp_path / 'kit/VOC2007/Annotations' / f'{number:06}.xml'
        written = [
            tuple(int(corner.text) for corner in box)
            for box in ET.parse(path).iter('bndbox')
        ]
        image, drawn = draw_image(seed=0, number=number, size=128)
        expected = []
        for shape in drawn:
            assert shape.mask.shape == image.shape[:2]
            rows, columns = np.nonzero(shape.mask)
            low = columns.min() + 1, rows.min() + 1
            expected.append((*low, columns.max() + 1, rows.max() + 1))
        assert written == expected


def test_shapes_have_the_promised_sizes_and_places(images):
    for image, drawn in images:
        assert 1 <= len(drawn) <= 4
        height, width = image.shape[:2]
        assert max(height, width) == 160
        assert min(height, width) >= 120
        for shape in drawn:
            x1, y1, x2, y2 = shape.box
            side = max(x2 - x1, y2 - y1) + 1
            touches = x1 == 1 or y1 == 1 or x2 == width or y2 == height
            if shape.truncated:
                assert touches
            else:
                assert side >= 0.22 * min(height, width) - 4
            assert side <= 0.6 * min(height, width) + 2


def test_boxes_of_an_image_hardly_overlap(images):
    for _, drawn in images:
        for one, other in itertools.combinations(drawn, 2):
            a, b = np.array(one.box), np.array(other.box)
            low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
            both = np.prod(np.maximum(high - low + 1, 0))
            either = sum(np.prod(x[2:] - x[:2] + 1) for x in (a, b)) - both
            assert both / either < 0.2


def test_all_classes_and_flags_occur(shapes):
    names = [shape.name for shape in shapes]
    counts = [names.count(name) for name in SYNTHETIC_CLASSES]
    assert sum(counts) == len(names)
    assert min(counts) > len(names) / 12  # a sixth each, by chance less
    assert 0 < sum(shape.difficult for shape in shapes) < len(shapes) / 6
    assert 0 < sum(shape.truncated for shape in shapes) < len(shapes) / 6


def test_colour_does_not_tell_the_class(images):
    colours, names = [], []
    for image, drawn in images:
        colours += [image[shape.mask].mean(axis=0) for shape in drawn]
        names += [shape.name for shape in drawn]
    colours, names = np.array(colours), np.array(names)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    hits = (names[distance.argmin(axis=1)] == names).mean()
    assert hits < 0.3  # chance is 1 / 6


# The devkit


def test_layout_and_annotations_are_those_of_voc(tmp_path):
    assert make_synthetic_voc(tmp_path / 'kit', **SMALL)
    year = tmp_path / 'kit' / 'VOC2007'
    lists = {
        path.stem: path.read_text().split()
        for path in (year / 'ImageSets' / 'Main').iterdir()
    }
    assert lists == {
        'trainval': ['000001', '000002', '000003', '000004'],
        'train': ['000001', '000003'],
        'val': ['000002', '000004'],
        'test': ['100001', '100002'],
    }
    names = sorted(lists['trainval'] + lists['test'])
    assert sorted(p.stem for p in (year / 'JPEGImages').iterdir()) == names
    for name in names:
        root = ET.parse(year / 'Annotations' / f'{name}.xml').getroot()
        image = cv2.imread(str(year / 'JPEGImages' / f'{name}.jpg'))
        size = [int(root.findtext(f'size/{k}')) for k in ('height', 'width')]
        assert image.shape == (*size, 3)
        assert root.findtext('folder') == 'VOC2007'
        assert root.findtext('filename') == f'{name}.jpg'
        for element in root.findall('object'):
            tags = [child.tag for child in element]
            flags = ['truncated', 'difficult']
            assert tags == ['name', *flags, 'bndbox']
            assert element.findtext('name') in SYNTHETIC_CLASSES
            assert {element.findtext(flag) for flag in flags} <= {'0', '1'}
            corners = [child.tag for child in element.find('bndbox')]
            assert corners == ['xmin', 'ymin', 'xmax', 'ymax']


def test_same_arguments_give_the_same_bytes(tmp_path):
    make_synthetic_voc(tmp_path / 'a', seed=5, **SMALL)
    make_synthetic_voc(tmp_path / 'b', seed=5, **SMALL)
    make_synthetic_voc(tmp_path / 'c', seed=6, **SMALL)
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')
    image = 'VOC2007/JPEGImages/000001.jpg'
    one, other = (tmp_path / kit / image for kit in 'ac')
    assert one.read_bytes() != other.read_bytes()


def test_an_image_does_not_depend_on_their_number(tmp_path):
    make_synthetic_voc(tmp_path / 'few', num_train=3, num_test=2, size=96)
    make_synthetic_voc(tmp_path / 'many', num_train=6, num_test=3, size=96)
    few, many = contents(tmp_path / 'few'), contents(tmp_path / 'many')
    images = [name for name in few if name.endswith(('.jpg', '.xml'))]
    assert len(images) == 10
    assert all(few[name] == many[name] for name in images)


def test_other_settings_need_force(tmp_path):
    make_synthetic_voc(tmp_path / 'kit', **SMALL)
    before = contents(tmp_path / 'kit')
    with pytest.raises(UserInputError, match='--force'):
        make_synthetic_voc(tmp_path / 'kit', seed=1, **SMALL)
    assert contents(tmp_path / 'kit') == before
    assert make_synthetic_voc(tmp_path / 'kit', seed=1, force=True, **SMALL)
    make_synthetic_voc(tmp_path / 'other', seed=1, **SMALL)
    assert contents(tmp_path / 'kit') == contents(tmp_path / 'other')


@pytest.mark.parametrize('extra', ['thesis.txt', 'VOC2007/genuine.jpg'])
def test_force_deletes_nothing_that_it_has_not_drawn(tmp_path, extra):
    path = tmp_path / 'kit' / extra
    path.parent.mkdir(parents=True)
    path.write_text('precious')
    with pytest.raises(UserInputError, match='never deleted'):
        make_synthetic_voc(tmp_path / 'kit', force=True, **SMALL)
    assert path.read_text() == 'precious'


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'full')])
def test_a_stopped_run_leaves_things_as_they_were(
    tmp_path, monkeypatch, error
):
    make_synthetic_voc(tmp_path / 'kit', **SMALL)
    before = contents(tmp_path)
    calls = []

    def stop(*args):
        calls.append(args)
        if len(calls) == 3:
            raise error
        return draw_image(*args)

    monkeypatch.setattr(synthetic_voc, 'draw_image', stop)
    with pytest.raises((KeyboardInterrupt, UserInputError)):
        make_synthetic_voc(tmp_path / 'kit', seed=1, force=True, **SMALL)
    assert len(calls) == 3
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ['kit']


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('num_train', 1),
        ('num_train', 100_000),
        ('num_test', 0),
        ('num_test', 2.5),
        ('num_test', True),
        ('seed', -1),
        ('size', 63),
        ('size', '320'),
    ],
)
def test_numbers_out_of_range_are_named(tmp_path, name, value):
    with pytest.raises(UserInputError, match=f'{name} must be.*{value!r}'):
        make_synthetic_voc(tmp_path / 'kit', **{**SMALL, name: value})
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / 'kit').write_text('')
    for out in (tmp_path / 'kit', tmp_path / 'kit' / 'below'):
        with pytest.raises(UserInputError, match='cannot be written'):
            make_synthetic_voc(out, **SMALL)


def test_the_tool_draws_once_and_then_says_so(tmp_path, monkeypatch, capsys):
    options = ['--images', '4', '--test-images', '2', '--size', '96']
    argv = [str(TOOL), '--out', str(tmp_path / 'kit'), *options]
    monkeypatch.setattr(sys, 'argv', argv)
    for said in ('4 + 2 images drawn', 'already there'):
        with pytest.raises(SystemExit, match='0'):
            runpy.run_path(str(TOOL), run_name='__main__')
        assert said in capsys.readouterr().out
    make_synthetic_voc(tmp_path / 'direct', **SMALL)
    assert contents(tmp_path / 'kit') == contents(tmp_path / 'direct')
