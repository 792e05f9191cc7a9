"""The drawn devkit: what is in it, and how it is put in place."""

import itertools
import os
import runpy
import subprocess
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


def area(points):
    """Shoelace area of a contour."""
    x, y = points.T
    return abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2


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


def test_no_pixel_belongs_to_two_shapes(images):
    for _, drawn in images:
        assert sum(shape.mask.astype(int) for shape in drawn).max() == 1


def test_shapes_are_painted_where_their_masks_say(images):
    steps = []
    for image, drawn in images:
        for shape in drawn:
            mask = shape.mask.astype(np.uint8)
            inner = cv2.erode(mask, np.ones((5, 5))).astype(bool)
            rim = cv2.dilate(mask, np.ones((7, 7))).astype(bool)
            outer = rim & ~cv2.dilate(mask, np.ones((3, 3))).astype(bool)
            step = image[inner].mean(axis=0) - image[outer].mean(axis=0)
            if not shape.difficult:
                steps.append(np.linalg.norm(step))
    assert np.quantile(steps, 0.05) > 60


def test_every_class_has_its_own_form():
    arm = 0.36
    cross = 8 * arm - 4 * arm**2  # two bars, minus the square they share
    star = 10 * 0.5 * 0.45 * np.sin(np.pi / 5)
    pentagon = 5 * 0.5 * np.sin(2 * np.pi / 5)
    circle_in_48 = 24 * np.sin(2 * np.pi / 48)
    # Filled area / area of the hull: turning and stretching keep it.
    expected = {
        'circle': 1,
        'square': 1,
        'triangle': 1,
        'star': star / pentagon,
        'cross': cross / (4 - 2 * (1 - arm) ** 2),  # hull: an octagon
        'ring': 1 - 0.55**2,
    }
    corners = {'circle': 48, 'square': 4, 'triangle': 3, 'star': 5, 'cross': 8}
    rng = np.random.default_rng(0)
    for name in SYNTHETIC_CLASSES:
        contours = synthetic_voc._contours(name, 100, rng)
        hull = cv2.convexHull(contours[0].astype(np.float32))[:, 0]
        filled = area(contours[0]) - sum(area(c) for c in contours[1:])
        assert filled / area(hull) == pytest.approx(expected[name], abs=1e-3)
        assert len(hull) == corners.get(name, 48)
        mask = synthetic_voc._rasterize(contours, 128, 128)
        assert mask.sum() == pytest.approx(filled, rel=0.06)
    assert area(synthetic_voc._circle()) == pytest.approx(circle_in_48)


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


def test_boxes_of_a_image_hardly_overlap(images):
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


def test_backgrounds_are_textured(images):
    for image, drawn in images:
        plain = ~sum(shape.mask for shape in drawn).astype(bool)
        assert image[plain].std(axis=0).max() > 8


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
            assert tags == ['name', 'pose', *flags, 'bndbox']
            assert element.findtext('name') in SYNTHETIC_CLASSES
            assert {element.findtext(flag) for flag in flags} <= {'0', '1'}
            corners = [child.tag for child in element.find('bndbox')]
            assert corners == ['xmin', 'ymin', 'xmax', 'ymax']


def test_written_image_has_the_drawn_colours(tmp_path):
    make_synthetic_voc(tmp_path / 'kit', **SMALL)
    path = tmp_path / 'kit/VOC2007/JPEGImages/000001.jpg'
    image, _ = draw_image(seed=0, number=1, size=96)
    written = cv2.imread(str(path))[..., ::-1].astype(int)
    assert abs(written - image).mean() < 6  # JPEG's own loss


def test_same_arguments_give_the_same_bytes(tmp_path):
    make_synthetic_voc(tmp_path / 'a', seed=5, **SMALL)
    make_synthetic_voc(tmp_path / 'b', seed=5, **SMALL)
    make_synthetic_voc(tmp_path / 'c', seed=6, **SMALL)
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')
    image = 'VOC2007/JPEGImages/000001.jpg'
    one, other = (tmp_path / kit / image for kit in 'ac')
    assert one.read_bytes() != other.read_bytes()


def test_a_image_does_not_depend_on_their_number(tmp_path):
    make_synthetic_voc(tmp_path / 'few', num_train=3, num_test=2, size=96)
    make_synthetic_voc(tmp_path / 'many', num_train=6, num_test=3, size=96)
    few, many = contents(tmp_path / 'few'), contents(tmp_path / 'many')
    images = [name for name in few if name.endswith(('.jpg', '.xml'))]
    assert len(images) == 10
    assert all(few[name] == many[name] for name in images)


def test_second_call_finds_the_same_devkit_and_draws_nothing(
    tmp_path, monkeypatch
):
    make_synthetic_voc(tmp_path / 'kit', **SMALL)
    monkeypatch.setattr(synthetic_voc, 'draw_image', None)
    assert not make_synthetic_voc(tmp_path / 'kit', **SMALL)
    assert not make_synthetic_voc(tmp_path / 'kit', force=True, **SMALL)


def test_other_settings_need_force(tmp_path):
    make_synthetic_voc(tmp_path / 'kit', **SMALL)
    before = contents(tmp_path / 'kit')
    with pytest.raises(UserInputError, match='--force'):
        make_synthetic_voc(tmp_path / 'kit', seed=1, **SMALL)
    assert contents(tmp_path / 'kit') == before
    assert make_synthetic_voc(tmp_path / 'kit', seed=1, force=True, **SMALL)
    make_synthetic_voc(tmp_path / 'other', seed=1, **SMALL)
    assert contents(tmp_path / 'kit') == contents(tmp_path / 'other')


def test_a_devkit_with_a_lost_image_is_not_taken_for_complete(tmp_path):
    make_synthetic_voc(tmp_path / 'kit', **SMALL)
    (tmp_path / 'kit/VOC2007/JPEGImages/100002.jpg').unlink()
    with pytest.raises(UserInputError, match='missing files'):
        make_synthetic_voc(tmp_path / 'kit', **SMALL)


@pytest.mark.parametrize('extra', ['thesis.txt', 'VOC2007/genuine.jpg'])
def test_force_deletes_nothing_that_it_has_not_drawn(tmp_path, extra):
    path = tmp_path / 'kit' / extra
    path.parent.mkdir(parents=True)
    path.write_text('precious')
    with pytest.raises(UserInputError, match='never deleted'):
        make_synthetic_voc(tmp_path / 'kit', force=True, **SMALL)
    assert path.read_text() == 'precious'


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / 'kit').mkdir()
    assert make_synthetic_voc(tmp_path / 'kit', **SMALL)
    assert (tmp_path / 'kit/VOC2007/JPEGImages/000001.jpg').is_file()


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


def test_a_failing_rename_brings_the_old_devkit_back(tmp_path, monkeypatch):
    make_synthetic_voc(tmp_path / 'kit', **SMALL)
    before = contents(tmp_path)
    rename = os.rename

    def refuse(source, target):
        if Path(source).name == 'new':
            raise OSError(1, 'refused')
        rename(source, target)

    monkeypatch.setattr(os, 'rename', refuse)
    with pytest.raises(UserInputError, match='refused'):
        make_synthetic_voc(tmp_path / 'kit', seed=1, force=True, **SMALL)
    assert contents(tmp_path) == before


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
    with pytest.raises(UserInputError, match='kit is a file'):
        make_synthetic_voc(tmp_path / 'kit', **SMALL)
    with pytest.raises(UserInputError, match='cannot be written'):
        make_synthetic_voc(tmp_path / 'kit' / 'below', **SMALL)


# The tool


def call_tool(monkeypatch, *arguments):
    """Run the tool in this process and give its exit code."""
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(TOOL), run_name='__main__')
    return caught.value.code


def test_tool_draws_once_and_then_says_so(tmp_path, monkeypatch, capsys):
    options = ['--out', tmp_path / 'kit', '--images', 4, '--test-images', 2]
    options += ['--size', 96, '--seed', 7]
    assert call_tool(monkeypatch, *options) == 0
    assert '4 + 2 images (trainval + test) drawn' in capsys.readouterr().out
    assert call_tool(monkeypatch, *options) == 0
    assert 'already there' in capsys.readouterr().out
    make_synthetic_voc(tmp_path / 'direct', seed=7, **SMALL)
    assert contents(tmp_path / 'kit') == contents(tmp_path / 'direct')


def test_tool_answers_bad_input_with_one_sentence(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / 'kit').mkdir()
    (tmp_path / 'kit' / 'mine').write_text('')
    for options in (['--images', 0], ['--force']):
        code = call_tool(monkeypatch, '--out', tmp_path / 'kit', *options)
        out, err = capsys.readouterr()
        assert (code, out, err.count('\n')) == (2, '', 1)
        assert err.endswith('.\n')


def test_tool_says_what_an_interrupt_left(tmp_path, monkeypatch, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic_voc, 'draw_image', stop)
    assert call_tool(monkeypatch, '--out', tmp_path / 'kit') == 130
    assert 'nothing was written' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_tool_runs_from_another_folder_without_installation(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run(
        [sys.executable, TOOL, '--out', 'kit', '--images', '0'],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert 'num_train must be' in done.stderr
    assert 'Traceback' not in done.stderr
