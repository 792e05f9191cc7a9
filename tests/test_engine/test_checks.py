"""Data are looked at before a model is built."""

import codecs
import hashlib
import json
import math
import os
import pickle
import shutil
import subprocess

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')

from mmpretrain.datasets import CIFAR10  # noqa: E402

from sb_mm.engine.checkpoints import check_checkpoint  # noqa: E402
from sb_mm.engine.checks import check_data  # noqa: E402
from sb_mm.engine.cli import run_tool  # noqa: E402
from sb_mm.engine.runner import train  # noqa: E402
from sb_mm.errors import UserInputError  # noqa: E402

TRAINING = ('train_dataloader', 'val_dataloader')
NAMES = ['ant', 'bee', 'cow']


def _config(scope, model, datasets, **more):
    names = [f'{split}_dataloader' for split in ('train', 'val', 'test')]
    loaders = {
        name: dict(dataset=dataset)
        for name, dataset in zip(names, datasets, strict=False)
    }
    return Config(dict(default_scope=scope, model=model, **loaders, **more))


def classifier(num_classes, datasets, **more):
    head = dict(type='LinearClsHead', num_classes=num_classes, in_channels=8)
    model = dict(type='ImageClassifier', backbone=dict(), head=head)
    return _config('mmpretrain', model, datasets, **more)


def custom(root, num_classes=3, **dataset):
    """A config with mmpretrain's CustomDataset."""
    common = dict(type='CustomDataset', data_root=str(root)) | dataset
    splits = [dict(data_prefix=s) | common for s in ('train', 'val', 'val')]
    return classifier(num_classes, splits)


def imagenet(root, num_classes=3, splits=('train', 'val', 'val'), **dataset):
    common = dict(type='ImageNet', data_root=str(root)) | dataset
    accuracy = dict(type='Accuracy', topk=(1, 5))
    return classifier(
        num_classes,
        [common | dict(split=split) for split in splits],
        val_evaluator=accuracy,
        test_evaluator=[dict(accuracy)],
    )


def cifar(root, num_classes=10, kind='CIFAR10', **dataset):
    common = dict(type=kind, data_root=str(root))
    splits = [common | dict(split=s) | dataset for s in ('train', 'test')]
    return classifier(num_classes, splits)


def error_of(cfg, loaders=TRAINING):
    with pytest.raises(UserInputError) as caught:
        check_data(cfg, loaders)
    message = str(caught.value)
    assert '\n' not in message
    return message


def assert_says(message, *words):
    assert [word for word in words if word not in message] == [], message


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


@pytest.fixture
def root(tmp_path):
    """Three classes of two images each, for training and validation."""
    for split in ('train', 'val'):
        for name in NAMES:
            folder = tmp_path / 'data' / split / name
            folder.mkdir(parents=True)
            for stem in 'ab':
                Image.new('RGB', (8, 8)).save(folder / f'{stem}.JPEG')
    return tmp_path / 'data'


# Classes


def test_a_wrong_number_of_classes_names_both_and_the_setting(root):
    check_data(custom(root), TRAINING)
    message = error_of(custom(root, num_classes=5))
    assert_says(message, 'num_classes=5', '3 classes (ant, bee, cow)')
    assert_says(message, 'set model.head.num_classes')


@pytest.mark.parametrize('head', [None, dict(type='MAEPretrainHead')])
def test_a_model_without_a_number_of_classes_passes(root, head):
    cfg = custom(root)
    cfg.model.head = head
    check_data(cfg, TRAINING)


@pytest.mark.parametrize('split', ['val', 'test'])
@pytest.mark.parametrize('kind', ['VOC', 'COCO', 'folders'])
def test_all_loaders_need_the_classes_in_one_order(
    kind, split, root, devkit, coco
):
    if kind == 'VOC':
        model = dict(bbox_head=dict(num_classes=2))
        data = dict(type='sb_mm.VOCDevkitDataset', data_root=str(devkit))
        data['ann_file'] = 'ImageSets/Main/train.txt'
        cfg = _config('mmdet', model, [dict(data) for _ in range(3)])
        names = ['square', 'disc']
    else:
        cfg = coco() if kind == 'COCO' else custom(root)
        names = ['cat', 'dog'] if kind == 'COCO' else NAMES
    for s in ('train', 'val', 'test'):
        cfg[f'{s}_dataloader'].dataset.metainfo = dict(classes=names)
    check_data(cfg, TRAINING)
    swapped = names[::-1]
    cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=swapped)
    message = error_of(cfg)
    assert_says(message, f'({", ".join(names)})', f'({", ".join(swapped)})')
    assert f'{split}_dataloader' in message
    with pytest.raises(UserInputError, match='in the same order'):
        train(Config(dict(cfg, launcher='none')), check=False)
    tested = 'val' if split == 'test' else 'test'
    check_data(cfg, (f'{tested}_dataloader',))  # alone


@pytest.mark.parametrize('kind', ['ConcatDataset', 'RepeatDataset'])
def test_datasets_below_wrappers_are_found(root, kind):
    cfg = custom(root)
    inner = [cfg[f'{split}_dataloader'].dataset for split in ('val', 'train')]
    several = kind == 'ConcatDataset'
    below = dict(datasets=inner) if several else dict(dataset=inner[-1])
    cfg.train_dataloader = dict(dataset=dict(type=kind, **below))
    check_data(cfg, TRAINING)
    (root / 'train/bee/b.JPEG').write_bytes(b'')
    assert 'train/bee/b.JPEG' in error_of(cfg)


def test_training_and_validation_need_the_same_folders(root):
    (root / 'val/bee').rename(root / 'val/bees')
    message = error_of(custom(root))
    assert_says(message, f'{root}/train has', f'{root}/val (ant, bees, cow)')
    assert_says(message, '(bee, bees in one of them only)', 'complete the co')
    check_data(custom(root), ('val_dataloader',))


def test_images_without_class_folders(root):
    shutil.rmtree(root / 'train')
    (root / 'train').mkdir()
    message = error_of(custom(root, num_classes=0))
    assert f'{root}/train holds no folders' in message


def test_a_subset_of_imagenet_names_the_commands_that_help(
    root, tmp_path, monkeypatch
):
    cfg = imagenet(root, num_classes=1000)
    message = error_of(cfg)
    assert_says(message, '3 class folders (ant, bee, cow)', 'has 1000 names')
    monkeypatch.chdir(tmp_path)
    # As the message says.
    _, command, _, options, _ = message.split('`')
    assert command == f'LC_ALL=C ls {root}/train > classes.txt'
    subprocess.run(command, shell=True, check=True)
    first, *options = options.split()
    assert first == '--cfg-options'
    pairs = dict(option.split('=', 1) for option in options)
    assert pairs.pop('model.head.num_classes') == '3'
    assert [pairs.pop(f'{e}.topk') for e in ('val_evaluator',
            'test_evaluator.0')] == ['1', '1']  # fmt: skip
    assert len(pairs) == 3
    cfg.merge_from_dict(pairs)
    assert '(ant, bee, cow): set model.head.num_classes' in error_of(cfg)
    cfg.model.head.num_classes = 3
    assert '`--cfg-options val_evaluator.topk=1 test' in error_of(cfg)
    cfg.val_evaluator.topk = cfg.test_evaluator[0].topk = 1
    check_data(cfg, TRAINING)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    labels = [dataset.get_data_info(i)['gt_label'] for i in range(6)]
    assert labels == [0, 0, 1, 1, 2, 2]


def test_names_of_the_folders_in_another_order_are_refused(root):
    (root / 'train/Bee').mkdir()
    (root / 'val/Bee').mkdir()
    for split in ('train', 'val'):
        Image.new('RGB', (8, 8)).save(root / split / 'Bee/a.JPEG')
    names = ['ant', 'bee', 'Bee', 'cow']  # as `ls` sorts in most locales
    cfg = custom(root, num_classes=4, metainfo=dict(classes=names))
    message = error_of(cfg)
    assert_says(message, '(ant, bee, Bee, cow)', '(Bee, ant, bee, cow)')
    for split in ('train', 'val', 'test'):
        metainfo = dict(classes=sorted(names))
        cfg[f'{split}_dataloader'].dataset.metainfo = metainfo
    check_data(cfg, TRAINING)


def test_a_head_that_computes_accuracy_needs_as_many_classes(root):
    cfg = custom(root)
    cfg.model.head.update(topk=(1, 5), cal_acc=True)
    assert '`--cfg-options model.head.topk=1`' in error_of(cfg)


def test_a_file_of_class_names_that_is_not_there(root):
    cfg = imagenet(root, metainfo=dict(classes='names.txt'))
    assert "metainfo.classes is 'names.txt'" in error_of(cfg)


def test_a_checkpoint_of_other_classes_than_the_file_of_names(root, tmp_path):
    names = tmp_path / 'classes.txt'
    names.write_text('ant\nb\u00e9e\ncow')
    checkpoint = tmp_path / 'x.pth'
    meta = dict(dataset_meta=dict(classes=('ant', 'be\u0301e', 'cat')))
    torch.save(dict(state_dict={}, meta=meta), checkpoint)
    cfg = imagenet(root, metainfo=dict(classes=str(names)))
    with pytest.raises(UserInputError, match=r"\(class 2 is 'cat' instead"):
        check_checkpoint(cfg, str(checkpoint))


# Folders and lists of images: files


def test_a_split_that_is_not_there(root):
    (root / 'val').rename(root / 'valid')
    assert_says(error_of(custom(root)), f'{root}/val not found', '--data-root')
    check_data(custom(root), TRAINING, files=False)


def test_class_folders_without_an_image_are_named(root):
    for stem in 'ab':
        (root / f'val/bee/{stem}.JPEG').unlink()
    (root / 'val/bee/readme.txt').write_text('no image')
    (root / 'val/bee/.a.JPEG').write_text('hidden')
    message = error_of(custom(root))
    assert_says(message, '1 of 3 folders hold no', f'({root}/val/bee)')
    (root / 'val/bee/more').mkdir()
    Image.new('RGB', (8, 8)).save(root / 'val/bee/more/a.png')
    check_data(custom(root), TRAINING)


def test_images_of_each_class_are_decoded(root):
    (root / 'elsewhere').mkdir()
    for path in (root / 'train').glob('*/*'):
        path.unlink()
    (root / 'train/ant/a.jpg').write_bytes(b'')
    (root / 'train/bee/a.jpg').symlink_to(root / 'nothing')
    os.mkfifo(root / 'train/cow/a.png')
    message = error_of(custom(root))
    for told in (
        'ant/a.jpg is not a readable image',
        'bee/a.jpg cannot be read (No such file',
        'cow/a.png is a folder, pipe or device',
    ):
        assert f'{root}/train/{told}' in message


def test_images_without_labels_need_no_classes(root):
    (root / 'test').mkdir()
    Image.new('RGB', (8, 8)).save(root / 'test/a.JPEG')
    cfg = imagenet(root, num_classes=1000, splits=['test'])
    check_data(cfg, TRAINING)
    (root / 'test/b.JPEG').write_bytes(b'')
    assert '/test/b.JPEG' in error_of(cfg)


@pytest.fixture
def listed(root):
    """A config of ImageNet that finds meta/train.txt and meta/val.txt."""
    (root / 'meta').mkdir()
    for split in ('train', 'val'):
        lines = [f'{n}/a.JPEG {i}' for i, n in enumerate(('ant', 'bee'))]
        (root / f'meta/{split}.txt').write_text('\n'.join(lines))
    return imagenet(root, num_classes=2)


def test_a_label_beyond_the_head(listed):
    check_data(listed, TRAINING)
    listed.model.head.num_classes = 1
    message = error_of(listed)
    assert_says(message, 'meta/train.txt has the label 1', 'only 0 to 0')
    assert 'model.head.num_classes' in message


@pytest.mark.parametrize('line', ['ant/a.JPEG', 'ant/a.JPEG x', ''])
def test_a_line_that_is_no_path_and_label(listed, root, line):
    (root / 'meta/val.txt').write_text(f'ant/a.JPEG 0\n{line}\nbee/a.JPEG 1')
    assert 'meta/val.txt has a line that is no path' in error_of(listed)


def test_a_list_that_is_empty_or_a_pipe_is_refused(listed, root):
    (root / 'meta/val.txt').write_text('')
    assert 'meta/val.txt is empty' in error_of(listed)
    (root / 'meta/val.txt').unlink()
    os.mkfifo(root / 'meta/val.txt')
    assert 'meta/val.txt is a folder, pipe or device' in error_of(listed)


# COCO


@pytest.fixture
def coco(tmp_path):
    """Write a dataset in COCO's format and return a config for it."""
    content = dict(
        images=[
            dict(id=i, file_name=f's/{i}.png', width=8, height=6)
            for i in range(3)
        ],
        categories=[dict(id=7, name='cat'), dict(id=5, name='dog')],
        annotations=[
            dict(id=i, image_id=i, category_id=7, bbox=[1, 1, 4, 4], area=16)
            for i in range(3)
        ],
    )

    def make(change=lambda content: None, classes=('cat', 'dog')):
        (tmp_path / 'images/s').mkdir(parents=True, exist_ok=True)
        for i in range(3):
            Image.new('RGB', (8, 6)).save(tmp_path / f'images/s/{i}.png')
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
        return _config('mmdet', model, [dict(data) for _ in range(3)])

    return make


def drop(part, key):
    return lambda content: content[part][1].pop(key)


def put(part, **values):
    return lambda content: content[part][1].update(values)


def rename(name):
    return lambda content: content['categories'][1].update(name=name)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda c: c['categories'].reverse(), ['(dog, cat)', '(cat, dog)']),
        (rename('dogs'), ["no category 'dog'", "('cat', 'dogs')"]),
        (rename('cat'), ["no category 'dog'"]),
        (lambda c: c['categories'].append(dict(id=9, name='cat')), ['order']),
        (lambda c: c.pop('categories'), ["lacks categories"]),
        (drop('images', 'file_name'), ["lacks 'file_name' in one of its im"]),
        (drop('annotations', 'bbox'), ["lacks 'bbox' in one of its annot"]),
        (lambda c: c.update(images=5), ['is not JSON in that form']),
        (lambda c: c['images'][1].update(file_name='s/x.png'),
         ['images/s/x.png cannot be read (No such file']),
        (lambda c: c['images'][1].update(file_name='s'),
         ['images/s is a folder']),
        (put('images', file_name=5), ["file_name 5 in one of its images"]),
        (put('images', file_name='\0'), ['cannot be read (embedded null']),
        (put('images', width='120'), ["has width '120'", 'pixels']),
        (put('images', height=0), ['has height 0', 'pixels']),
        (put('images', id=[1]), ['id [1] in one of its images', 'integer']),
        (put('categories', name=3), ['name 3 in one of its categories']),
        *((put('annotations', bbox=box), [f'has bbox {box}', 'finite'])
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
    cfg = coco(rename('cafe\u0301'), classes=('cat', 'caf\u00e9'))
    assert_says(error_of(cfg), r"'caf\xe9'", r"'cafe\u0301'")


@pytest.mark.parametrize(
    ('file', 'content', 'told'),
    [
        ('a.json', b'{"images": [', 'a.json is not JSON'),
        ('a.json', b'\xff\xfe', 'a.json is not JSON'),
        ('a.json', codecs.BOM_UTF8 + b'{}', 'a.json is not JSON'),
        ('a.json', '{}'.encode('utf-16'), 'a.json is not JSON'),
        ('a.json', b'[' * 100_000, 'a.json is not JSON'),
        ('a.json', None, 'a.json is a folder, pipe or device'),
        ('images/s/1.png', b'no image', '1.png is not a readable image'),
        ('images/s/1.png', None, '1.png is a folder, pipe or device'),
    ],
    ids=[
        'cut',
        'binary',
        'BOM',
        'UTF-16',
        'deep',
        'pipe',
        'no image',
        'image pipe',
    ],
)
def test_coco_files_that_cannot_be_read(coco, tmp_path, file, content, told):
    cfg = coco()
    path = tmp_path / file
    path.unlink()
    os.mkfifo(path) if content is None else path.write_bytes(content)
    assert told in error_of(cfg)


def test_other_sizes_and_categories_of_coco_are_warned_of(coco, warnings_of):
    assert warnings_of(coco()) == []

    def change(content):
        content['images'][0].update(width=6, height=8)
        content['categories'].append(dict(id=1, name='cow'))
        content['annotations'][0]['category_id'] = 1

    left_out, other_size = warnings_of(coco(change))
    assert_says(left_out, '1 objects', 'left out', 'metainfo.classes: cow')
    assert_says(other_size, '1 images have another size', 's/0.png')


@pytest.mark.parametrize(
    ('values', 'told'),
    [
        (dict(bbox=[1, 1, -4, 4]), '1 boxes are left out'),
        (dict(bbox=[9, 1, 4, 4]), '1 boxes are left out'),
        (dict(area=0), '1 boxes are left out'),
        (dict(bbox=[1, 1, 9, 4]), 'reach beyond'),
        (dict(bbox=[-2, 1, 9, 4]), 'reach beyond'),
        (dict(image_id=9), 'belong to no image in their file and are left'),
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


def test_images_of_coco_that_exif_turns_are_counted(
    coco, tmp_path, warnings_of
):
    cfg, exif = coco(), Image.Exif()
    exif[0x0112] = 3  # the size stays
    Image.new('RGB', (8, 6)).save(tmp_path / 'images/s/1.png', exif=exif)
    (message,) = warnings_of(cfg)
    assert_says(message, '1 images', 's/1.png', 'color_ignore_orientation')


@pytest.mark.parametrize('kind', ['COCO', 'folders'])
def test_an_image_of_too_many_pixels_is_refused(kind, coco, root, tmp_path):
    cfg = coco() if kind == 'COCO' else custom(root)
    file = 'images/s/1.png' if kind == 'COCO' else 'data/val/ant/a.JPEG'
    Image.new('1', (12_000, 12_000)).save(tmp_path / file, 'PNG')
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


# CIFAR


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A folder with small batches, which mmpretrain takes for published."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    batch = dict(data=np.zeros((2, 3072), np.uint8), labels=[0, 1])
    content = pickle.dumps(batch)
    for files in ('train_list', 'test_list'):
        names = [name for name, _ in getattr(CIFAR10, files)]
        for name in names:
            (folder / name).write_bytes(content)
        pairs = [[name, hashlib.md5(content).hexdigest()] for name in names]
        monkeypatch.setattr(CIFAR10, files, pairs)
    monkeypatch.setattr(CIFAR10, 'url', (tmp_path / 'x').as_uri())
    return folder


def test_intact_files_of_cifar_pass_without_a_download(cifar10):
    check_data(cifar(cifar10.parent, download=True), TRAINING)
    check_data(cifar(cifar10.parent, download=False), TRAINING)


@pytest.mark.parametrize('download', [True, False])
def test_cifar_that_cannot_be_had_is_refused(cifar10, download):
    trace = cifar10.parent / 'trace'

    class Evil:
        def __reduce__(self):
            return open, (str(trace), 'w')

    (cifar10 / 'data_batch_2').write_bytes(pickle.dumps(Evil()))
    message = error_of(cifar(cifar10.parent, download=download))
    assert_says(message, f'{cifar10.parent}/ does not hold', CIFAR10.url)
    assert 'unpack' in message
    assert not trace.exists()


def test_cifar10_has_ten_classes(cifar10):
    message = error_of(cifar(cifar10.parent, num_classes=100))
    assert 'num_classes=100, but the dataset has 10 classes' in message
    assert 'model.head.num_classes' in message


# Any dataset


def test_a_dataset_that_nobody_knows():
    message = error_of(cifar('x', kind='Cifar11'))
    assert 'The dataset Cifar11 is unknown' in message


def test_the_tool_stops_before_the_model_is_built(tool, root, tmp_path):
    config = tmp_path / 'mine.py'
    imagenet(root, num_classes=1000).dump(config)
    code, error = tool('train', config, '--work-dir', tmp_path / 'work')
    assert code == 2
    assert error.strip().splitlines()[-1].startswith(f'error: {root}/train')
    assert 'Traceback' not in error


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_was_no_sample_is_named_when_it_is_loaded(
    root, capsys, workers
):
    (root / 'train/bee/b.JPEG').write_bytes(b'no image')
    pipeline = [dict(type='LoadImageFromFile')]
    cfg = custom(root, pipeline=pipeline).train_dataloader.dataset
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        loader = DataLoader(DATASETS.build(cfg), None, num_workers=workers)
    with pytest.raises(SystemExit, match='2'):
        run_tool(lambda: list(loader))
    said = capsys.readouterr().err.splitlines()
    told = f'{root}/train/bee/b.JPEG is not a readable image: replace it.'
    assert said[-1] == f'error: {told}'
