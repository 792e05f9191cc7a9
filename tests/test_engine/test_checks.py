"""Data are looked at before a model is built."""

import codecs
import hashlib
import json
import math
import os
import pickle
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')

from mmpretrain.datasets import CIFAR10, CIFAR100  # noqa: E402

from sb_mm.engine import checks, coco_file  # noqa: E402
from sb_mm.engine.checkpoints import check_checkpoint  # noqa: E402
from sb_mm.engine.checks import check_data  # noqa: E402
from sb_mm.engine.runner import train  # noqa: E402
from sb_mm.errors import UserInputError  # noqa: E402

from .conftest import REPOSITORY  # noqa: E402

DATA = Path(
    os.environ.get('SB_MM_TEST_DATA', REPOSITORY.parent / 'shared/data')
)
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
        for module in (checks, coco_file):
            monkeypatch.setattr(
                module, 'print_log', lambda text, *_: said.append(text)
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


def _loader(*datasets, kind):
    if kind == 'ConcatDataset':
        return dict(dataset=dict(type=kind, datasets=list(datasets)))
    return dict(dataset=dict(type=kind, dataset=datasets[-1]))


@pytest.mark.parametrize(
    'kind', ['ConcatDataset', 'RepeatDataset', 'ClassBalancedDataset']
)
def test_data_sets_below_wrappers_are_found(root, kind):
    cfg = custom(root)
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    cfg.train_dataloader = _loader(val, train, kind=kind)
    check_data(cfg, TRAINING)
    (root / 'train/bee/b.JPEG').write_bytes(b'')
    assert 'train/bee/b.JPEG' in error_of(cfg)


def test_training_and_validation_need_the_same_folders(root):
    (root / 'val/bee').rename(root / 'val/bees')
    message = error_of(custom(root))
    assert f'{root}/train and {root}/val' in message
    assert '(bee, bees in one of them only)' in message
    check_data(custom(root), ('val_dataloader',))


def test_images_without_class_folders(root):
    for path in list(root.glob('*/*/*')):
        path.rename(path.parents[1] / f'{path.parent.name}-{path.name}')
    for folder in list(root.glob('*/*/')):
        if folder.is_dir():
            folder.rmdir()
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
    assert dataset.metainfo['classes'] == NAMES


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


@pytest.mark.parametrize('split', ['train', 'val'])
def test_class_folders_without_an_image_are_named(root, split):
    for stem in 'ab':
        (root / split / f'bee/{stem}.JPEG').unlink()
    (root / split / 'bee/readme.txt').write_text('no image')
    (root / split / 'bee/.a.JPEG').write_text('hidden')
    message = error_of(custom(root))
    assert_says(message, '1 of 3 folders hold no', f'({root}/{split}/bee)')
    (root / split / 'bee/more').mkdir()
    Image.new('RGB', (8, 8)).save(root / split / 'bee/more/a.png')
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


def test_a_list_that_is_a_pipe_is_refused_instead_of_waited_for(listed, root):
    (root / 'meta/val.txt').unlink()
    os.mkfifo(root / 'meta/val.txt')
    assert 'meta/val.txt is a folder, pipe or device' in error_of(listed)


def test_listed_images_that_are_not_there(listed, root):
    for name in ('ant', 'bee'):
        (root / f'val/{name}/a.JPEG').unlink()
    message = error_of(listed)
    for name in ('ant', 'bee'):
        assert f'{root}/val/{name}/a.JPEG cannot be read' in message


def test_data_on_a_server_are_left_to_mmpretrain(root):
    ann_file = root / 'x.txt'
    ann_file.write_text('a.jpg 0')
    server = 'http://localhost:1/train'
    cfg = custom('', data_prefix=server, ann_file=str(ann_file))
    check_data(cfg, TRAINING)


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
    assert_says(left_out, '1 categories', '(cow)', 'left out')
    assert_says(other_size, '1 images have another size', 's/0.png')


@pytest.mark.parametrize(
    ('values', 'told'),
    [
        (dict(bbox=[1, 1, -4, 4]), '1 boxes of'),
        (dict(bbox=[9, 1, 4, 4]), '1 boxes of'),
        (dict(area=0), '1 boxes of'),
        (dict(bbox=[1, 1, 9, 4]), 'reach beyond'),
        (dict(bbox=[-2, 1, 9, 4]), 'reach beyond'),
        (dict(image_id=9), 'belong to no image'),
    ],
)
def test_boxes_of_coco_that_mmdet_drops_or_does_not_clip_are_counted(
    coco, warnings_of, values, told
):
    (message,) = warnings_of(coco(put('annotations', **values)))
    assert_says(message, told)
    kept = 'beyond' in told
    assert ('left out' not in message) == kept
    # As the warning says.
    cfg = coco()
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert sum(len(i['instances']) for i in map(dataset.get_data_info,
               range(3))) == 2 + kept  # fmt: skip


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


def test_the_metric_needs_its_annotation_file(coco, tmp_path):
    cfg = coco()
    metric = dict(type='CocoMetric', ann_file=str(tmp_path / 'a.json'))
    cfg.val_evaluator = [metric]
    check_data(cfg, TRAINING)
    cfg.val_evaluator[0].ann_file = 'b.json'
    assert_says(error_of(cfg), 'ann_file b.json', 'CocoMetric')


# CIFAR


class _Evil:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.fixture
def trace(tmp_path):
    """A file that is there when a batch was unpickled."""
    return tmp_path / 'trace'


@pytest.fixture
def server(tmp_path, trace, monkeypatch):
    """A folder with an archive of small batches, which mmpretrain expects."""
    folder = tmp_path / 'server' / CIFAR10.base_folder
    folder.mkdir(parents=True)
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        (folder / name).write_bytes(pickle.dumps((name, _Evil(trace))))
    archive = folder.parent / CIFAR10.filename
    with tarfile.open(archive, 'w:gz') as tar:
        tar.add(folder, CIFAR10.base_folder)

    def md5(path):
        return hashlib.md5(path.read_bytes()).hexdigest()

    for files in ('train_list', 'test_list'):
        names = [name for name, _ in getattr(CIFAR10, files)]
        pairs = [[name, md5(folder / name)] for name in names]
        monkeypatch.setattr(CIFAR10, files, pairs)
    monkeypatch.setattr(CIFAR10, 'tgz_md5', md5(archive))
    monkeypatch.setattr(CIFAR10, 'url', archive.as_uri())
    return folder.parent


def test_intact_files_pass_without_a_download(server, trace):
    (server / CIFAR10.filename).unlink()
    check_data(cifar(server, download=True), TRAINING)
    check_data(cifar(server, download=False), TRAINING)
    assert not trace.exists()


@pytest.mark.parametrize('kind', ['absent', 'a batch less', 'damaged'])
def test_what_is_missing_is_downloaded_and_unpacked(
    server, tmp_path, trace, kind
):
    root = tmp_path / 'mine'
    folder = root / CIFAR10.base_folder
    if kind != 'absent':
        root.mkdir()
        (server / CIFAR10.base_folder).rename(folder)
        (folder / 'data_batch_5').unlink()
    if kind == 'damaged':
        (folder / 'data_batch_5').write_text('cut off')
    check_data(cifar(root), TRAINING)
    assert len(list(folder.iterdir())) == 6
    assert b'data_batch_5' in (folder / 'data_batch_5').read_bytes()
    assert not trace.exists()


def test_a_download_that_fails_says_what_is_missing(server, tmp_path, trace):
    (server / CIFAR10.filename).unlink()
    (server / CIFAR10.base_folder / 'data_batch_2').write_text('cut off')
    (server / CIFAR10.base_folder / 'test_batch').unlink()
    message = error_of(cifar(server))
    assert 'lacks data_batch_2 (damaged), test_batch (missing) (' in message
    assert 'the download failed' in message
    assert f'unpack {CIFAR10.url} in {server}' in message
    assert not trace.exists()


def test_nothing_is_downloaded_that_may_not(server, tmp_path):
    root = tmp_path / 'mine'
    (root / CIFAR10.base_folder).mkdir(parents=True)
    message = error_of(cifar(root, download=False))
    assert 'lacks data_batch_1 (missing)' in message
    assert '(download=False)' in message
    assert [path.name for path in root.iterdir()] == [CIFAR10.base_folder]


def test_cifar10_has_ten_classes(server):
    message = error_of(cifar(server, num_classes=100))
    assert 'num_classes=100, but the dataset has 10 classes' in message
    assert 'model.head.num_classes' in message


def test_cifar100_has_a_hundred(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR100, 'url', (tmp_path / 'x').as_uri())
    cfg = cifar(tmp_path, 100, 'CIFAR100')
    message = error_of(cfg)
    assert 'cifar-100-python lacks train (missing)' in message
    cfg.model.head.num_classes = 10
    assert '100 classes' in error_of(cfg)


# Any dataset


def test_a_data_set_that_nobody_knows():
    message = error_of(cifar('x', kind='Cifar11'))
    assert 'The dataset Cifar11 is unknown' in message


def test_settings_that_the_data_set_does_not_take(tmp_path):
    message = error_of(cifar(tmp_path, split='val'))
    assert 'CIFAR10' in message
    assert "but get 'val'" in message


def test_the_tool_stops_before_the_model_is_built(tool, root, tmp_path):
    config = tmp_path / 'mine.py'
    imagenet(root, num_classes=1000).dump(config)
    code, error = tool('train', config, '--work-dir', tmp_path / 'work')
    assert code == 2
    assert error.strip().splitlines()[-1].startswith(f'error: {root}/train')
    assert 'Traceback' not in error


# Through the pipelines of the configs


def _pipelines():
    base = REPOSITORY / 'configs/_base_/datasets/imagenet.py'
    cfg = Config.fromfile(base)
    return cfg.train_pipeline, cfg.test_pipeline


@pytest.mark.parametrize('index', [0, 1], ids=['train', 'test'])
def test_a_grey_jpeg_becomes_three_equal_channels(root, index):
    for path in (root / 'train').glob('*/*'):
        Image.linear_gradient('L').save(path, 'JPEG')
    cfg = custom(root, pipeline=_pipelines()[index])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    image = dataset[0]['inputs']
    assert tuple(image.shape) == (3, 224, 224)
    assert image.float().std() > 1
    assert (image == image[:1]).all()


@pytest.mark.skipif(
    not (DATA / 'imagenette_mini.tar').is_file(),
    reason='no imagenette_mini.tar is there',
)
def test_real_jpegs_pass_the_checks_and_the_pipelines(tmp_path):
    with tarfile.open(DATA / 'imagenette_mini.tar') as tar:
        tar.extractall(tmp_path)
    root = tmp_path / 'imagenette_mini'
    names = sorted(path.name for path in (root / 'train').iterdir())
    cfg = imagenet(root, num_classes=10, metainfo=dict(classes=names))
    check_data(cfg, TRAINING)
    images = sorted((root / 'train').glob('*/*'))
    grey = [i for i, p in enumerate(images) if Image.open(p).mode == 'L']
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for pipeline in _pipelines():
            settings = dict(cfg.train_dataloader.dataset, pipeline=pipeline)
            dataset = DATASETS.build(settings)
            for i in [0, *grey[:2]]:
                assert tuple(dataset[i]['inputs'].shape) == (3, 224, 224)
    assert len(dataset) == 400
    assert grey
