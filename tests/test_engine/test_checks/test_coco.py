"""Data in COCO's format are looked at before a model is built."""

import copy
import json
import math
import os

import pytest
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from sb_mm.engine.checks.data import check_data

from ..conftest import TRAINING, assert_says, data_config, error_of

pytest.importorskip('mmdet')
BOX = dict(category_id=7, bbox=[1, 1, 4, 4], area=16)
CONTENT = dict(
    images=[
        dict(id=i, file_name=f's/{i}.png', width=8, height=6) for i in range(3)
    ],
    categories=[dict(id=7, name='cat'), dict(id=5, name='dog')],
    annotations=[dict(BOX, id=i, image_id=i) for i in range(3)],
)


@pytest.fixture
def coco(tmp_path):
    """Write a dataset in COCO's format and return a config for it."""

    def make(change=lambda content: None, classes=('cat', 'dog')):
        (tmp_path / 'images/s').mkdir(parents=True, exist_ok=True)
        for image in CONTENT['images']:
            path = tmp_path / 'images' / image['file_name']
            Image.new('RGB', (8, 6)).save(path)
        content = copy.deepcopy(CONTENT)
        change(content)
        (tmp_path / 'a.json').write_text(json.dumps(content))
        data = dict(
            type='CocoDataset',
            data_root=str(tmp_path),
            ann_file='a.json',
            data_prefix=dict(img='images'),
            metainfo=dict(classes=classes),
        )
        model = dict(bbox_head=dict(num_classes=2))
        return data_config('mmdet', model, [dict(data) for _ in range(3)])

    return make


@pytest.fixture
def warnings_of(monkeypatch):
    """Run the checks and return what they warned of."""

    def run(cfg):
        said = []
        monkeypatch.setattr(
            'sb_mm.datasets.images.print_log',
            lambda text, *_: said.append(text),
        )
        check_data(cfg, TRAINING)
        return said

    return run


def put(part, **values):
    return lambda content: content[part][1].update(values)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda c: c['categories'].reverse(), ['(dog, cat)', '(cat, dog)']),
        (put('categories', name='dogs'),
         ["no category 'dog'", "('cat', 'dogs')"]),
        (lambda c: c['categories'].append(dict(id=9, name='cat')),
         ['(cat, dog, cat)', '(cat at another place)']),
        (lambda c: c.pop('categories'), ['has no categories']),
        (lambda c: c.update(images=5), ['is not JSON in that form']),
        (lambda c: c.update(images=[5]), ['is not JSON in that form']),
        (put('images', file_name='s/x.png'), ['s/x.png cannot be read (No s']),
        (put('images', file_name='s'), ['images/s is a folder']),
        (put('images', file_name=None), ['file_name None in one of its im']),
        (put('images', file_name='\0'), ['cannot be read (embedded null']),
        (put('images', height=0), ['has height 0', 'pixels']),
        (put('images', id=[1]), ['id [1] in one of its images', 'integer']),
        *((put('annotations', bbox=box), [f'has bbox {box}', 'width'])
          for box in (None, [1, 1, 4], [1, 1, '4', 4], [math.nan, 1, 4, 4])),
        (put('annotations', area=None), ['has area None']),
        (put('annotations', id=0), ['1 ids more than once in its annot']),
        (lambda c: c['images'].clear(), ['has no images']),
        (lambda c: c['annotations'].clear(), ['has no annotations']),
        (lambda c: [a.update(image_id=9) for a in c['annotations']],
         ['no object of metainfo.classes']),
    ],
)  # fmt: skip
def test_a_coco_file_that_does_not_fit_is_refused(coco, change, words):
    assert_says(error_of(coco(change)), *words)


def test_names_in_another_form_of_unicode_are_told_apart(coco):
    change = put('categories', name='cafe\u0301')
    cfg = coco(change, classes=('cat', 'caf\u00e9'))
    assert_says(error_of(cfg), r"'caf\xe9'", r"'cafe\u0301'")


@pytest.mark.parametrize(
    'content',
    [b'{"images": [', b'[]', '{}'.encode('utf-16'), b'[' * 100_000, None],
    ids=lambda value: str(value)[:20],
)
def test_coco_files_that_cannot_be_read(coco, tmp_path, content):
    cfg, path = coco(), tmp_path / 'a.json'
    path.unlink()
    os.mkfifo(path) if content is None else path.write_bytes(content)
    told = 'a.json is not JSON' if content else 'a.json is a folder, pipe'
    assert told in error_of(cfg)


def test_what_is_odd_and_no_fault_in_coco_is_warned_of(
    coco, tmp_path, warnings_of
):
    assert warnings_of(coco()) == []

    def change(content):
        content['images'][0].update(width=6, height=8)
        content['categories'].append(dict(id=1, name='cow'))
        content['annotations'][0]['category_id'] = 1

    cfg, exif = coco(change), Image.Exif()
    exif[0x0112] = 3  # the size stays
    Image.new('RGB', (8, 6)).save(tmp_path / 'images/s/1.png', exif=exif)
    left_out, other_size, turned = warnings_of(cfg)
    assert_says(left_out, '1 objects', 'left out', 'metainfo.classes: cow')
    assert_says(other_size, '1 images have another size', 's/0.png')
    assert_says(turned, '1 images', 's/1.png', 'color_ignore_orientation')


@pytest.mark.parametrize(
    ('values', 'told'),
    [
        (dict(bbox=[1, 1, -4, 4]), '1 objects are left out'),
        (dict(bbox=[9, 1, 4, 4]), '1 objects are left out'),
        (dict(area=0), '1 objects are left out'),
        (dict(bbox=[1, 1, 9, 4]), 'reach beyond'),
        (dict(bbox=[-2, 1, 9, 4]), 'reach beyond'),
        (dict(image_id=9), '1 objects are left out'),
        (dict(image_id=9, bbox=[-9, -9, 40, 40]), '1 objects are left out'),
    ],
)
def test_boxes_of_coco_that_mmdet_drops_or_does_not_clip_are_counted(
    coco, warnings_of, values, told
):
    cfg = coco(put('annotations', **values))
    (message,) = warnings_of(cfg)
    assert told in message
    # As the warning says.
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    kept = [len(dataset.get_data_info(i)['instances']) for i in range(3)]
    assert sum(kept) == 2 + ('left' not in told)


def test_an_image_of_too_many_pixels_is_refused(coco, tmp_path):
    cfg, file = coco(), 'images/s/1.png'
    Image.new('1', (12_000, 12_000)).save(tmp_path / file)
    assert_says(error_of(cfg), file, '100 megapixels', '--no-check')


def test_the_metric_needs_its_annotation_file_and_ids_from_1(coco, tmp_path):
    cfg = coco(lambda content: content['annotations'][0].update(id=3))
    metric = dict(type='CocoMetric', ann_file=str(tmp_path / 'a.json'))
    cfg.val_evaluator = [metric]
    check_data(cfg, TRAINING)
    cfg.val_evaluator[0].ann_file = 'b.json'
    assert_says(error_of(cfg), 'ann_file b.json', 'CocoMetric')
    # pycocotools marks a detection without a match with the object 0.
    coco(lambda content: content['annotations'][0].update(id=0))
    cfg.val_evaluator[0].ann_file = str(tmp_path / 'a.json')
    assert_says(error_of(cfg), 'id 0', 'pycocotools', 'number them from 1')
