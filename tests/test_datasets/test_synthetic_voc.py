"""The drawn devkit: what is in it, and how it is put in place."""

import os
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from sb_mm.datasets import synthetic_voc
from sb_mm.datasets.annotation import Annotation, read_annotation
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


def contents(folder):
    """Map the files below a folder to their bytes."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Images


def test_boxes_are_tight_of_the_promised_sizes_and_hardly_overlap(images):
    full = DrawnShape('square', np.ones((40, 60), bool), False)
    assert full.box == (1, 1, 60, 40)
    for image, drawn in images:
        assert 1 <= len(drawn) <= 4
        shorter, longer = sorted(image.shape[:2])
        assert longer == 160
        assert shorter >= 120
        for shape in drawn:
            assert shape.mask.shape == image.shape[:2]
            x1, y1, x2, y2 = shape.box
            inside = shape.mask[y1 - 1 : y2, x1 - 1 : x2]
            assert inside.sum() == shape.mask.sum()
            edges = inside[0], inside[-1], inside[:, 0], inside[:, -1]
            assert all(edge.any() for edge in edges)
            assert max(inside.shape) <= 0.6 * shorter + 3
        boxes = torch.tensor([shape.box for shape in drawn]).float()
        boxes[:, 2:] += 1
        assert box_iou(boxes, boxes).fill_diagonal_(0).max() < 0.2


def test_all_classes_and_flags_occur(images):
    shapes = [shape for _, drawn in images for shape in drawn]
    names = [shape.name for shape in shapes]
    counts = [names.count(name) for name in SYNTHETIC_CLASSES]
    assert sum(counts) == len(names)
    assert min(counts) > len(names) / 12  # a sixth each, by chance less
    assert 0 < sum(shape.difficult for shape in shapes) < len(shapes) / 6


# The devkit


def test_lists_and_annotations_are_those_of_voc(tmp_path):
    assert make_synthetic_voc(tmp_path / 'kit', **SMALL)
    year = tmp_path / 'kit/VOC2007'
    lists = {
        path.stem: path.read_text().split()
        for path in (year / 'ImageSets/Main').iterdir()
    }
    assert lists == {
        'trainval': ['000001', '000002', '000003', '000004'],
        'train': ['000001', '000003'],
        'val': ['000002', '000004'],
        'test': ['100001', '100002'],
    }
    for name in lists['trainval'] + lists['test']:
        expected, drawn = draw_image(seed=0, number=int(name), size=96)
        image = cv2.imread(str(year / f'JPEGImages/{name}.jpg'))[..., ::-1]
        assert np.abs(image - expected.astype(float)).mean() < 6
        path = str(year / f'Annotations/{name}.xml')
        assert read_annotation(path) == Annotation(
            filename=f'{name}.jpg',
            size=image.shape[1::-1],
            objects=[(d.name, [*d.box], d.difficult) for d in drawn],
        )


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    more = dict(SMALL, num_train=6, num_test=3)
    kits = []
    for seed, arguments in ((5, SMALL), (5, SMALL), (5, more), (6, SMALL)):
        out = tmp_path / f'kit{len(kits)}'
        make_synthetic_voc(out, seed=seed, **arguments)
        kits.append(contents(out))
    ours, same, more, other = kits
    assert ours == same
    images = [name for name in ours if name.endswith(('.jpg', '.xml'))]
    assert len(images) == 12
    for name in images:
        assert ours[name] == more[name]
        assert ours[name] != other[name]


def test_other_settings_need_force(tmp_path):
    make_synthetic_voc(tmp_path / 'kit', **SMALL)
    assert not make_synthetic_voc(tmp_path / 'kit', **SMALL)
    before = contents(tmp_path / 'kit')
    with pytest.raises(UserInputError, match='--force'):
        make_synthetic_voc(tmp_path / 'kit', seed=1, **SMALL)
    assert contents(tmp_path / 'kit') == before
    assert make_synthetic_voc(tmp_path / 'kit', seed=1, force=True, **SMALL)
    assert contents(tmp_path / 'kit') != before


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

    def stop(seed, number, size):
        if number == 3:
            raise error
        return draw_image(seed, number, size)

    monkeypatch.setattr(synthetic_voc, 'draw_image', stop)
    with pytest.raises((KeyboardInterrupt, UserInputError)):
        make_synthetic_voc(tmp_path / 'kit', seed=1, force=True, **SMALL)
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ['kit']


@pytest.mark.parametrize(
    ('name', 'value'),
    [('num_train', 1), ('num_test', 2.5), ('seed', -1), ('size', '320')],
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
