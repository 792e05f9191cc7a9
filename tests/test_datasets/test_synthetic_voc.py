"""The drawn devkit: what is in it, and how it is put in place."""

import os
import runpy
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
    draw_image,
    make_synthetic_voc,
)
from sb_mm.errors import UserInputError

TOOL = Path(__file__).parents[2] / 'tools' / 'make_synthetic_voc.py'
SMALL = {'num_train': 4, 'num_test': 2, 'size': 96}


def test_the_shapes_are_as_the_detector_needs_them(monkeypatch):
    """Tight boxes of the promised sizes that hardly overlap."""
    # White that hides the noise: what is darker was painted.
    monkeypatch.setattr(
        synthetic_voc,
        '_background',
        lambda rng, *sides: np.full((*sides, 3), 500.0),
    )
    names, difficult, counts = [], 0, set()
    for number in range(1, 81):
        image, shapes = draw_image(seed=3, number=number, size=160)
        height, width = image.shape[:2]
        shorter, longer = sorted((height, width))
        assert longer == 160
        assert shorter >= 120
        counts.add(len(shapes))
        boxes = torch.tensor([shape.box for shape in shapes]).float()
        boxes[:, :2] -= 1
        assert box_iou(boxes, boxes).fill_diagonal_(0).max() < 0.35
        sides = boxes[:, 2:] - boxes[:, :2]
        assert sides.max() <= 0.6 * shorter + 2
        if len(shapes) == 1 and not shapes[0].difficult:
            seen = (image < 250).any(axis=2).astype(np.uint8)
            x, y, w, h = cv2.boundingRect(seen)
            found = [x, y, x + w, y + h]
            assert np.abs(boxes[0].numpy() - found).max() <= 2
        names += [shape.name for shape in shapes]
        difficult += sum(shape.difficult for shape in shapes)
    assert counts == {1, 2, 3, 4}
    assert {*names} == {*SYNTHETIC_CLASSES}
    # A sixth each, by chance less.
    assert min(map(names.count, SYNTHETIC_CLASSES)) > len(names) / 12
    assert 0 < difficult < len(names) / 6


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
        size = image.shape[1::-1]
        assert read_annotation(path) == Annotation(f'{name}.jpg', size, drawn)


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    more = dict(SMALL, num_train=6, num_test=3)
    kits = []
    for seed, arguments in ((5, SMALL), (5, more), (6, SMALL)):
        out = tmp_path / f'kit{len(kits)}'
        make_synthetic_voc(out, seed=seed, **arguments)
        files = [f for f in out.rglob('*.*') if f.suffix in ('.jpg', '.xml')]
        kits.append({file.name: file.read_bytes() for file in files})
    ours, more, other = kits
    assert len(ours) == 12
    assert ours.items() <= more.items()
    assert not ours.items() & other.items()


@pytest.mark.parametrize('file', ['synthetic_voc.json', 'genuine.jpg'])
def test_what_is_there_is_left_alone(tmp_path, file):
    path = tmp_path / 'kit/VOC2007' / file
    path.parent.mkdir(parents=True)
    path.write_text('precious')
    with pytest.raises(UserInputError, match='VOC2007 holds something else'):
        make_synthetic_voc(tmp_path / 'kit', **SMALL)
    assert path.read_text() == 'precious'


def test_a_run_that_is_stopped_leaves_nothing(tmp_path, monkeypatch):
    def stop(seed, number, size):
        if number == 3:
            raise KeyboardInterrupt
        return draw_image(seed, number, size)

    monkeypatch.setattr(synthetic_voc, 'draw_image', stop)
    with pytest.raises(KeyboardInterrupt):
        make_synthetic_voc(tmp_path, **SMALL)
    assert os.listdir(tmp_path) == []


def test_the_tool_draws_once_and_then_says_so(tmp_path, monkeypatch, capsys):
    options = '--images 4 --test-images 2 --size 96 --out'
    argv = [str(TOOL), *options.split(), str(tmp_path / 'kit')]
    monkeypatch.setattr('sys.argv', argv)
    for said in ('4 + 2 images drawn', 'already there'):
        with pytest.raises(SystemExit, match='0'):
            runpy.run_path(str(TOOL), run_name='__main__')
        assert said in capsys.readouterr().out
