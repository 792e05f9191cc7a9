"""Data for classification are looked at before a model is built."""

import hashlib
import os
import pickle
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

pytest.importorskip('mmpretrain')

from mmpretrain.datasets import CIFAR10, CIFAR100  # noqa: E402

from sb_mm.datasets.packed_cifar10 import PackedCIFAR10  # noqa: E402
from sb_mm.engine import classification_data
from sb_mm.engine.preflight import (  # noqa: E402
    check_checkpoint,
    check_data,
)
from sb_mm.errors import UserInputError  # noqa: E402

from .conftest import REPOSITORY  # noqa: E402

DATA = Path(
    os.environ.get('SB_MM_TEST_DATA', REPOSITORY.parent / 'shared/data')
)
TRAINING = ('train_dataloader', 'val_dataloader')


@pytest.fixture
def root(tmp_path):
    """Three classes of two images each, for training and validation."""
    for split in ('train', 'val'):
        for name in ('ant', 'bee', 'cow'):
            folder = tmp_path / 'data' / split / name
            folder.mkdir(parents=True)
            for stem in 'ab':
                Image.new('RGB', (8, 8)).save(folder / f'{stem}.JPEG')
    return tmp_path / 'data'


def custom(root, num_classes=3, **dataset):
    """A config with mmpretrain's CustomDataset."""
    loaders = {
        f'{split}_dataloader': dict(
            dataset=dict(
                type='CustomDataset',
                data_root=str(root),
                data_prefix=split,
                pipeline=[dict(type='PackInputs')],
            )
            | dataset
        )
        for split in ('train', 'val')
    }
    return Config(_classifier(num_classes) | loaders)


def imagenet(root, num_classes=3, splits=('train', 'val'), **dataset):
    loaders = {
        f'{loader}_dataloader': dict(
            dataset=dict(type='ImageNet', data_root=str(root), split=split)
            | dataset
        )
        for loader, split in zip(('train', 'val'), splits, strict=False)
    }
    return Config(_classifier(num_classes) | loaders)


def cifar(root, num_classes=10, kind='CIFAR10', **dataset):
    loaders = {
        f'{loader}_dataloader': dict(
            dataset=dict(type=kind, data_root=str(root), split=split) | dataset
        )
        for loader, split in (('train', 'train'), ('val', 'test'))
    }
    return Config(_classifier(num_classes) | loaders)


def _classifier(num_classes):
    head = dict(type='LinearClsHead', num_classes=num_classes, in_channels=8)
    model = dict(type='ImageClassifier', backbone=dict(), head=head)
    return dict(default_scope='mmpretrain', model=model)


def error_of(cfg, loaders=TRAINING):
    with pytest.raises(UserInputError) as caught:
        check_data(cfg, loaders)
    message = str(caught.value)
    assert '\n' not in message
    return message


# Folders of images: classes


def test_whole_folders_pass(root):
    check_data(custom(root), TRAINING)


def test_a_wrong_number_of_classes_names_both_and_the_setting(root):
    message = error_of(custom(root, num_classes=5))
    assert 'num_classes=5' in message
    assert '3 classes (ant, bee, cow)' in message
    assert 'set model.head.num_classes' in message


@pytest.mark.parametrize('head', [None, dict(type='MAEPretrainHead')])
def test_a_model_without_a_number_of_classes_passes(root, head):
    cfg = custom(root)
    cfg.model.head = head
    check_data(cfg, TRAINING)


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


def test_one_split_alone_is_not_compared(root):
    (root / 'val/bee').rename(root / 'val/bees')
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
    assert '3 class folders (ant, bee, cow)' in message
    assert 'metainfo.classes has 1000 names' in message
    monkeypatch.chdir(tmp_path)
    # As the message says.
    _, command, _, options, _ = message.split('`')
    assert command == f'ls {root}/train > classes.txt'
    subprocess.run(command, shell=True, check=True)
    first, head, *names = options.split()
    assert first == '--cfg-options'
    assert head == 'model.head.num_classes=3'
    assert len(names) == 3
    cfg.merge_from_dict(dict(option.split('=', 1) for option in names[:2]))
    assert '(ant, bee, cow): set model.head.num_classes' in error_of(cfg)
    cfg.model.head.num_classes = 3
    check_data(cfg, TRAINING)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    labels = [dataset.get_data_info(i)['gt_label'] for i in range(6)]
    assert labels == [0, 0, 1, 1, 2, 2]
    assert dataset.metainfo['classes'] == ['ant', 'bee', 'cow']


@pytest.fixture
def warnings_of(monkeypatch):
    """Run the checks and return what they warned of."""

    def run(cfg):
        said = []
        monkeypatch.setattr(
            classification_data,
            'print_log',
            lambda text, *_: said.append(text),
        )
        check_data(cfg, TRAINING)
        return said

    return run


def test_a_part_of_imagenet_is_warned_of(tmp_path, warnings_of, monkeypatch):
    for split in ('train', 'val'):
        for i in range(1000):
            folder = tmp_path / split / f'n{i:08}'
            folder.mkdir(parents=True)
            (folder / 'a.JPEG').write_bytes(b'x')
    cfg = imagenet(tmp_path, num_classes=1000)
    train, val = warnings_of(cfg)
    assert 'train holds 1,000 images instead of the 1,281,167' in train
    assert 'val holds 1,000 images instead of the 50,000' in val
    images = dict(train=1000, val=1000)
    monkeypatch.setattr(classification_data, '_IMAGENET_IMAGES', images)
    assert warnings_of(cfg) == []


def test_a_subset_of_imagenet_on_purpose_is_not_warned_of(root, warnings_of):
    names = dict(classes=['ant', 'bee', 'cow'])
    assert warnings_of(imagenet(root, metainfo=names)) == []


def test_a_file_of_class_names_that_is_not_there(root):
    cfg = imagenet(root, metainfo=dict(classes='names.txt'))
    assert "metainfo.classes is 'names.txt'" in error_of(cfg)


def test_a_checkpoint_of_other_classes_than_the_file_of_names(root, tmp_path):
    names = tmp_path / 'classes.txt'
    names.write_text('ant\nbee\ncow')
    checkpoint = tmp_path / 'x.pth'
    meta = dict(dataset_meta=dict(classes=('ant', 'bee', 'cat')))
    torch.save(dict(state_dict={}, meta=meta), checkpoint)
    cfg = imagenet(root, metainfo=dict(classes=str(names)))
    with pytest.raises(UserInputError, match="2 is 'cat' instead of 'cow'"):
        check_checkpoint(cfg, str(checkpoint))


# Folders of images: files


def test_a_split_that_is_not_there(root):
    (root / 'val').rename(root / 'valid')
    message = error_of(imagenet(root, metainfo=dict(classes=['a', 'b', 'c'])))
    assert f'{root}/val not found' in message
    assert '--data-root' in message


@pytest.mark.parametrize('split', ['train', 'val'])
def test_class_folders_without_a_image_are_named(root, split):
    for stem in 'ab':
        (root / split / f'bee/{stem}.JPEG').unlink()
    (root / split / 'bee/readme.txt').write_text('no image')
    (root / split / 'bee/.a.JPEG').write_text('hidden')
    message = error_of(custom(root))
    assert '1 of 3 folders hold no image' in message
    assert f'({root}/{split}/bee)' in message


def test_empty_files_and_broken_links_are_counted_and_named(root):
    (root / 'elsewhere').mkdir()
    deep = root / 'train/cow/more/x.png'
    deep.parent.symlink_to(root / 'elsewhere')
    link = root / 'train/bee/x.jpg'
    for path in (root / 'train/ant/a.JPEG', root / 'train/ant/c.jpg', deep):
        path.write_bytes(b'')
    link.symlink_to(root / 'nothing')
    message = error_of(custom(root))
    assert f'4 images of {root}/train are empty' in message
    assert f'{root}/train/ant/a.JPEG, {root}/train/ant/c.jpg' in message
    assert 'and 1 more' in message


def test_what_mmpretrain_does_not_load_may_be_empty(root):
    for name in ('ant/readme.txt', 'ant/._a.JPEG'):
        (root / 'train' / name).write_bytes(b'')
    check_data(custom(root), TRAINING)


def test_images_without_labels_need_no_classes(root):
    (root / 'test').mkdir()
    Image.new('RGB', (8, 8)).save(root / 'test/a.JPEG')
    cfg = imagenet(root, num_classes=1000, splits=['test'])
    check_data(cfg, TRAINING)
    (root / 'test/b.JPEG').write_bytes(b'')
    assert '/test/b.JPEG' in error_of(cfg)


# Lists of images


@pytest.fixture
def listed(root):
    """A config of ImageNet that finds meta/train.txt and meta/val.txt."""
    (root / 'meta').mkdir()
    for split in ('train', 'val'):
        lines = [f'{n}/a.JPEG {i}' for i, n in enumerate(('ant', 'bee'))]
        (root / f'meta/{split}.txt').write_text('\n'.join(lines))
    return imagenet(root, num_classes=2)


def test_a_list_of_images_passes_whatever_the_folders_are(listed):
    check_data(listed, TRAINING)


def test_a_label_beyond_the_head(listed):
    listed.model.head.num_classes = 1
    message = error_of(listed)
    assert 'meta/train.txt has the label 1' in message
    assert 'only 0 to 0' in message
    assert 'model.head.num_classes' in message


@pytest.mark.parametrize('line', ['ant/a.JPEG', 'ant/a.JPEG x', ''])
def test_a_line_that_is_no_path_and_label(listed, root, line):
    (root / 'meta/val.txt').write_text(f'ant/a.JPEG 0\n{line}\nbee/a.JPEG 1')
    assert 'meta/val.txt has a line that is no path' in error_of(listed)


def test_listed_images_that_are_not_there(listed, root):
    for name in ('ant', 'bee'):
        (root / f'val/{name}/a.JPEG').unlink()
    message = error_of(listed)
    assert f'2 images of {root}/val are empty files or not there' in message
    assert f'({root}/val/ant/a.JPEG, {root}/val/bee/a.JPEG)' in message


def test_data_on_a_server_are_left_to_mmpretrain(root):
    cfg = custom('', data_prefix='http://localhost:1/train', ann_file='x.txt')
    with pytest.raises(UserInputError, match='x.txt not found'):
        check_data(cfg, TRAINING)
    ann_file = root / 'x.txt'
    ann_file.write_text('a.jpg 0')
    cfg = custom(
        '', data_prefix='http://localhost:1/train', ann_file=str(ann_file)
    )
    check_data(cfg, TRAINING)


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
    assert 'sb_mm.PackedCIFAR10' in message
    assert 'delete' not in message
    assert not trace.exists()


def test_an_archive_that_is_cut_off_is_named(server, tmp_path):
    archive = server / CIFAR10.filename
    archive.write_bytes(archive.read_bytes()[:-9])
    message = error_of(cifar(tmp_path / 'mine'))
    assert 'lacks data_batch_1 (missing)' in message
    assert f'delete {tmp_path}/mine/{CIFAR10.filename}, which is' in message


def test_nothing_is_downloaded_that_may_not(server, tmp_path):
    root = tmp_path / 'mine'
    (root / CIFAR10.base_folder).mkdir(parents=True)
    message = error_of(cifar(root, download=False))
    assert 'lacks data_batch_1 (missing)' in message
    assert '(download=False)' in message
    assert [path.name for path in root.iterdir()] == [CIFAR10.base_folder]


@pytest.mark.parametrize(
    ('launcher', 'variable'),
    [
        ('pytorch', 'RANK'),
        ('slurm', 'SLURM_PROCID'),
        ('mpi', 'OMPI_COMM_WORLD_RANK'),
    ],
)
def test_only_the_first_process_downloads(
    server, tmp_path, monkeypatch, launcher, variable
):
    cfg = cifar(tmp_path / 'mine')
    cfg.launcher = launcher
    monkeypatch.setenv(variable, '1')
    check_data(cfg, TRAINING)
    assert not (tmp_path / 'mine').exists()
    monkeypatch.setenv(variable, '0')
    check_data(cfg, TRAINING)
    assert (tmp_path / 'mine').exists()


def test_without_a_launcher_every_process_is_the_first(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv('SLURM_PROCID', '1')
    check_data(cifar(tmp_path / 'mine'), TRAINING)
    assert (tmp_path / 'mine').exists()


def test_cifar10_has_ten_classes(server):
    message = error_of(cifar(server, num_classes=100))
    assert 'num_classes=100, but the dataset has 10 classes' in message
    assert 'model.head.num_classes' in message


def test_cifar100_has_a_hundred_and_no_packed_form(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR100, 'url', (tmp_path / 'x').as_uri())
    cfg = cifar(tmp_path, 100, 'CIFAR100')
    message = error_of(cfg)
    assert 'cifar-100-python lacks train (missing)' in message
    assert 'PackedCIFAR10' not in message
    cfg.model.head.num_classes = 10
    assert '100 classes' in error_of(cfg)


@pytest.fixture
def packed(tmp_path):
    """Two grey images in each of the three files."""
    folder = tmp_path / 'packed'
    folder.mkdir()
    file = folder / 'grey.webp'
    Image.new('RGB', (32, 32), 'grey').save(file, lossless=True)
    content = file.read_bytes()
    for name in ('train-0', 'train-1', 'test'):
        np.savez(
            folder / f'{name}.npz',
            webp=np.frombuffer(2 * content, np.uint8),
            offsets=np.arange(3) * len(content),
            labels=np.array([1, 2]),
            classes=np.array(PackedCIFAR10.METAINFO['classes']),
        )
    return folder


def test_packed_cifar10_is_decoded_and_its_classes_counted(packed):
    cfg = cifar(packed, kind='sb_mm.PackedCIFAR10')
    check_data(cfg, TRAINING)
    cfg.model.head.num_classes = 7
    assert 'num_classes=7, but the dataset has 10' in error_of(cfg)
    cfg.model.head.num_classes = 10
    (packed / 'train-1.npz').write_text('')
    assert 'train-1.npz is damaged' in error_of(cfg)


# Any dataset


def test_a_data_set_that_nobody_knows():
    message = error_of(cifar('x', kind='Cifar11'))
    assert 'The dataset Cifar11 is unknown' in message


def test_settings_that_the_data_set_does_not_take(tmp_path):
    message = error_of(cifar(tmp_path, split='val'))
    assert 'CIFAR10' in message
    assert "but get 'val'" in message


def test_a_class_in_place_of_its_name(server):
    cfg = cifar(server, num_classes=100)
    for loader in TRAINING:
        cfg[loader].dataset.type = CIFAR10
    assert 'has 10 classes' in error_of(cfg)


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
