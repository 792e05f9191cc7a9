"""Folders of images and CIFAR are looked at before a model is built."""

import hashlib
import os
import pickle
import shutil
import subprocess
from ast import literal_eval

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from sb_mm.engine.checks.checkpoint import check_checkpoint
from sb_mm.engine.checks.data import check_data
from sb_mm.engine.cli import run_tool
from sb_mm.engine.runner import train
from sb_mm.errors import UserInputError

from ..conftest import TRAINING, assert_says, data_config, error_of

CIFAR10 = pytest.importorskip('mmpretrain.datasets').CIFAR10
NAMES = ['ant', 'bee', 'cow']


def config(root, num_classes=3, splits=('train', 'val', 'val'), **dataset):
    """A classifier's config, with mmpretrain's CustomDataset or another."""
    dataset = dict(type='CustomDataset', data_root=str(root)) | dataset
    key = 'data_prefix' if dataset['type'] == 'CustomDataset' else 'split'
    head = dict(type='LinearClsHead', num_classes=num_classes, in_channels=8)
    return data_config(
        'mmpretrain',
        dict(type='ImageClassifier', backbone=dict(), head=head),
        [{key: split} | dataset for split in splits],
        val_evaluator=dict(type='Accuracy', topk=(1,)),
        test_evaluator=[dict(type='Accuracy', topk=(1,))],
    )


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Three classes of two images each, for training and validation."""
    for split in ('train', 'val'):
        for name in NAMES:
            for stem in 'ab':
                draw(tmp_path / 'data' / split / name / f'{stem}.JPEG')
    return tmp_path / 'data'


@pytest.mark.parametrize('split', ['val', 'test'])
def test_all_loaders_need_the_classes_in_one_order(split, root):
    cfg = config(root, metainfo=dict(classes=NAMES))
    check_data(cfg, TRAINING)
    cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=NAMES[::-1])
    lists = ['(ant, bee, cow)', '(cow, bee, ant)']
    assert_says(error_of(cfg), *lists, f'{split}_dataloader')
    with pytest.raises(UserInputError, match='in the same order'):
        train(Config(dict(cfg, launcher='none')), check=False)
    tested = 'val' if split == 'test' else 'test'
    check_data(cfg, (f'{tested}_dataloader',))  # alone


def test_a_subset_of_imagenet_names_the_commands_that_help(
    root, tmp_path, monkeypatch
):
    cfg = config(root, 1000, type='ImageNet')
    cfg.data_preprocessor = dict(num_classes=1000)
    cfg.val_evaluator.topk = cfg.test_evaluator[0].topk = (1, 5)
    message = error_of(cfg)
    assert_says(message, '3 class folders (ant, bee, cow)', 'has 1000 names')
    monkeypatch.chdir(tmp_path)
    # As the message says.
    _, command, _, options, _ = message.split('`')
    assert command == f'LC_ALL=C ls {root}/train > classes.txt'
    subprocess.run(command, shell=True, check=True)
    pairs = dict(option.split('=', 1) for option in options.split()[1:])
    assert pairs.pop('model.head.num_classes') == '3'
    assert pairs.pop('val_evaluator.topk') == '1'
    assert pairs.pop('data_preprocessor.num_classes') == '3'
    assert len(pairs) == 3
    cfg.merge_from_dict(pairs)
    assert '(ant, bee, cow): set model.head.num_classes' in error_of(cfg)
    cfg.model.head.num_classes = 3
    assert '`--cfg-options val_evaluator.topk=1`.' in error_of(cfg)
    cfg.val_evaluator.topk = 1
    check_data(cfg, TRAINING)
    with pytest.raises(UserInputError, match='options test_evaluator.0.topk'):
        check_data(cfg, ('test_dataloader',))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    labels = [dataset.get_data_info(i)['gt_label'] for i in range(6)]
    assert labels == [0, 0, 1, 1, 2, 2]


def test_a_checkpoint_of_other_classes_than_the_file_of_names(root, tmp_path):
    names = tmp_path / 'classes.txt'
    names.write_text('ant\nb\u00e9e\ncow')
    checkpoint = tmp_path / 'x.pth'
    meta = dict(dataset_meta=dict(classes=('ant', 'be\u0301e', 'cat')))
    torch.save(dict(state_dict={}, meta=meta), checkpoint)
    cfg = config(root, type='ImageNet', metainfo=dict(classes=str(names)))
    with pytest.raises(UserInputError, match='cat, cow in one of them only'):
        check_checkpoint(cfg, str(checkpoint))


# Folders and lists of images


def _leave_no_image(root):
    for stem in 'ab':
        (root / f'val/bee/{stem}.JPEG').unlink()
    (root / 'val/bee/readme.txt').write_text('no image')
    (root / 'val/bee/.a.JPEG').write_text('hidden')


def _damage(root):
    for path in (root / 'train').glob('*/*'):
        path.unlink()
    (root / 'train/ant/a.jpg').write_bytes(b'')
    (root / 'train/bee/a.jpg').symlink_to(root / 'nothing')
    os.mkfifo(root / 'train/cow/a.png')


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda root: (root / 'val').rename(root / 'v'), ['{}/val not found']),
        (
            lambda root: [shutil.rmtree(root / 'train' / n) for n in NAMES],
            ['{}/train holds no folders'],
        ),
        (
            lambda root: (root / 'val/bee').rename(root / 'val/bees'),
            ['{}/train has', '{}/val (ant, bees, cow) (bee, bees in one of'],
        ),
        (_leave_no_image, ['1 of 3 folders hold no', '({}/val/bee)']),
        (
            _damage,
            [
                '{}/train/ant/a.jpg is not a readable image',
                '{}/train/bee/a.jpg cannot be read (No such file',
                '{}/train/cow/a.png is a folder, pipe or device',
            ],
        ),
    ],
)
def test_folders_that_cannot_be_trained_on(root, change, words):
    check_data(config(root), TRAINING)
    change(root)
    assert_says(error_of(config(root)), *(w.format(root) for w in words))
    check_data(config(root), TRAINING, files=False)
    if change is _leave_no_image:
        draw(root / 'val/bee/more/a.png')
        check_data(config(root), TRAINING)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(num_classes=5), '=5, but the dataset has 3 classes (ant, bee,'),
        (dict(metainfo=dict(classes='n.txt')), "metainfo.classes is 'n.txt'"),
        (dict(metainfo=dict(classes=NAMES[::-1])), 'give (ant, bee, cow)'),
        (dict(type='Cifar11'), 'module that defines it in custom_imports'),
    ],
)
def test_settings_that_do_not_fit_the_folders(root, settings, words):
    assert words in error_of(config(root, **settings))


def test_a_head_that_computes_accuracy_needs_as_many_classes(root):
    cfg = config(root)
    cfg.model.head.update(topk=(1, 5), cal_acc=True)
    assert '`--cfg-options model.head.topk=1`' in error_of(cfg)
    cfg.model.head = None
    check_data(cfg, TRAINING)


def test_mixed_labels_need_a_loss_for_them(root):
    cfg = config(root)
    cfg.data_preprocessor = dict(num_classes=1000)
    cfg.model.head.loss = dict(type='CrossEntropyLoss')
    check_data(cfg, TRAINING)
    cfg.model.train_cfg = dict(augments=dict(type='Mixup', alpha=0.2))
    _, options, _ = error_of(cfg).split('`')
    pairs = (option.split('=') for option in options.split()[1:])
    cfg.merge_from_dict({key: literal_eval(value) for key, value in pairs})
    check_data(cfg, TRAINING)


def test_datasets_below_wrappers_are_found(root):
    cfg = config(root)
    inner = [cfg[f'{split}_dataloader'].dataset for split in ('val', 'train')]
    joined = dict(type='ConcatDataset', datasets=inner)
    repeated = dict(type='RepeatDataset', dataset=joined)
    cfg.train_dataloader = dict(dataset=repeated)
    check_data(cfg, TRAINING)
    (root / 'train/bee/b.JPEG').write_bytes(b'')
    assert 'train/bee/b.JPEG' in error_of(cfg)


def test_paths_of_a_dataset_of_any_base_are_looked_for(root):
    cfg = config(root)
    plain = dict(type=Dataset, data_root=str(root), ann_file='no.txt')
    cfg.train_dataloader = dict(dataset=plain)
    assert f'{root}/no.txt not found' in error_of(cfg)


def test_images_without_labels_need_no_classes(root):
    draw(root / 'test/a.JPEG')
    cfg = config(root, 1000, ['test'], type='ImageNet')
    cfg.val_evaluator = None
    check_data(cfg, TRAINING)
    (root / 'test/b.JPEG').write_bytes(b'')
    assert '/test/b.JPEG' in error_of(cfg)


LISTS = {
    'ant/a.JPEG 0\nbee/a.JPEG 2': 'the label 2, but the head only 0 to 1',
    'ant/a.JPEG 0\nant/a.JPEG\n': 'has a line that is no path',
    'ant/a.JPEG x': 'has a line that is no path',
    '': 'is empty',
    None: 'is a folder, pipe or device',
}


@pytest.mark.parametrize(('content', 'words'), LISTS.items())
def test_a_list_of_images_that_cannot_be_used(root, content, words):
    (root / 'meta').mkdir()
    for split in ('train', 'val'):
        (root / f'meta/{split}.txt').write_text('ant/a.JPEG 0\nbee/a.JPEG 1')
    cfg = config(root, 2, type='ImageNet')
    check_data(cfg, TRAINING)
    file = root / 'meta/val.txt'
    file.unlink()
    os.mkfifo(file) if content is None else file.write_text(content)
    assert_says(error_of(cfg), words, 'meta/val.txt')


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_was_no_sample_is_named_when_it_is_loaded(
    root, capsys, workers
):
    (root / 'train/bee/b.JPEG').write_bytes(b'no image')
    pipeline = [dict(type='LoadImageFromFile')]
    cfg = config(root, pipeline=pipeline).train_dataloader.dataset
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        loader = DataLoader(DATASETS.build(cfg), None, num_workers=workers)
    with pytest.raises(SystemExit, match='2'):
        run_tool(lambda: list(loader))
    said = capsys.readouterr().err.splitlines()
    told = f'{root}/train/bee/b.JPEG is not a readable image: replace it.'
    assert said[-1] == f'error: {told}'


@pytest.mark.parametrize('download', [True, False])
def test_cifar_that_cannot_be_had_is_refused(tmp_path, monkeypatch, download):
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
    settings = dict(type='CIFAR10', download=download)
    cfg = config(tmp_path, 10, ['train', 'test'], **settings)
    check_data(cfg, TRAINING)  # nothing to download
    trace = tmp_path / 'trace'

    class Evil:
        def __reduce__(self):
            return open, (str(trace), 'w')

    (folder / 'data_batch_2').write_bytes(pickle.dumps(Evil()))
    message = error_of(cfg)
    assert_says(message, f'{tmp_path}/ does not hold', CIFAR10.url, 'unpack')
    assert not trace.exists()
    cfg.model.head.num_classes = 100
    assert '=100, but the dataset has 10 classes' in error_of(cfg)
