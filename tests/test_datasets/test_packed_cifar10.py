import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import ClassBalancedDataset
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from sb_mm.datasets.packed_cifar10 import PackedCIFAR10
from sb_mm.errors import UserInputError

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(
    os.environ.get('SB_MM_TEST_DATA', REPOSITORY.parent / 'shared/data')
)
CLASSES = list(PackedCIFAR10.METAINFO['classes'])
# Images 0 to 9 are of train-0.npz, 10 and 11 of train-1.npz.
LABELS = dict(train=[3, 1, 4, 0, 5, 9, 2, 6, 8, 7, 7, 0], test=[9, 2])


def webp(image, **options):
    file = io.BytesIO()
    options = dict(lossless=True, exact=True) | options
    Image.fromarray(image).save(file, 'WEBP', **options)
    return file.getvalue()


def write_part(path, images, labels, /, **changes):
    files = [p if isinstance(p, bytes) else webp(p) for p in images]
    arrays = dict(
        webp=np.frombuffer(b''.join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=np.array(labels, np.uint8),
        classes=np.array(CLASSES),
    )
    arrays |= changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def draw(count, seed, shape=(32, 32, 3)):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), np.uint8)


IMAGES = dict(train=draw(12, 0), test=draw(2, 1))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / 'packed'
    folder.mkdir()
    train, labels = IMAGES['train'], LABELS['train']
    write_part(folder / 'train-0.npz', train[:10], labels[:10])
    write_part(folder / 'train-1.npz', train[10:], labels[10:])
    write_part(folder / 'test.npz', IMAGES['test'], LABELS['test'])
    return folder


# What is read


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize('serialize', [False, True])
def test_images_and_labels_come_back_in_the_files_order(
    root, split, serialize
):
    dataset = PackedCIFAR10(str(root), split, serialize_data=serialize)
    assert len(dataset) == len(LABELS[split])
    for i, (image, label) in enumerate(
        zip(IMAGES[split], LABELS[split], strict=True)
    ):
        sample = dataset[i]
        np.testing.assert_array_equal(sample['img'], image)
        assert sample['img'].dtype == np.uint8
        assert sample['gt_label'] == label
        assert type(sample['gt_label']) is int


def official_files(folder):
    """The same images as the official pickles hold them."""
    folder = folder / 'cifar-10-batches-py'
    folder.mkdir(parents=True)
    names = [f'data_batch_{i}' for i in range(1, 6)]
    rows = np.array_split(np.arange(12), 5)
    parts = [('train', *p) for p in zip(names, rows, strict=True)]
    for split, name, row in [*parts, ('test', 'test_batch', np.arange(2))]:
        flat = IMAGES[split][row].transpose(0, 3, 1, 2).reshape(-1, 3072)
        labels = [LABELS[split][i] for i in row]
        batch = pickle.dumps(dict(data=flat, labels=labels))
        (folder / name).write_bytes(batch)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_only_type_and_root_differ_from_mmpretrains_cifar10(
    root, tmp_path, monkeypatch, split
):
    cifar = pytest.importorskip('mmpretrain.datasets').CIFAR10
    monkeypatch.setattr(cifar, '_check_integrity', lambda self: True)
    official_files(tmp_path / 'official')
    cfg = dict(
        split=split,
        test_mode=split == 'test',
        download=False,
        indices=[1, 0],
        pipeline=[
            dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            dict(type='RandomCrop', crop_size=32),
            dict(type='PackInputs'),
        ],
    )
    kinds = dict(official='CIFAR10', packed='sb_mm.PackedCIFAR10')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs, ours = (
            DATASETS.build(dict(cfg, type=kind, data_root=str(tmp_path / key)))
            for key, kind in kinds.items()
        )
    assert theirs.metainfo == ours.metainfo
    assert theirs.test_mode == ours.test_mode
    assert len(theirs) == len(ours) == 2
    for i in range(2):
        assert theirs[i].keys() == ours[i].keys()
        assert theirs[i]['inputs'].equal(ours[i]['inputs'])
        samples = theirs[i]['data_samples'], ours[i]['data_samples']
        assert samples[0].all_keys() == samples[1].all_keys()
        assert samples[0].gt_label.equal(samples[1].gt_label)


def test_the_folder_may_be_given_as_the_prefix_as_for_cifar10(root):
    assert len(PackedCIFAR10(data_prefix=str(root))) == 12
    assert len(PackedCIFAR10(str(root.parent), data_prefix='packed')) == 12


def test_the_pixels_of_a_file_are_one_array(root):
    samples = PackedCIFAR10(str(root)).data_list
    owners = {id(sample['img'].base) for sample in samples}
    assert len(owners) == 2


def test_a_transform_in_place_does_not_reach_the_data(root):
    dataset = PackedCIFAR10(str(root))
    dataset[0]['img'][:] = 0
    np.testing.assert_array_equal(dataset[0]['img'], IMAGES['train'][0])


def test_a_lazy_data_set_reads_when_it_is_checked(root):
    dataset = PackedCIFAR10(str(root), lazy_init=True)
    assert dataset.data_list == []
    dataset.check_images()
    assert len(dataset.data_list) == 12


# Names of the classes


def test_the_classes_are_mmpretrains():
    categories = pytest.importorskip('mmpretrain.datasets.categories')
    assert tuple(CLASSES) == tuple(categories.CIFAR10_CATEGORIES)


@pytest.mark.parametrize('how', ['metainfo', 'classes', 'file'])
def test_the_classes_may_have_other_names(root, tmp_path, how):
    names = [f'klasse {i}' for i in range(10)]
    file = tmp_path / 'names.txt'
    file.write_text('\n'.join(names))
    given = dict(
        metainfo=dict(metainfo=dict(classes=names)),
        classes=dict(classes=names),
        file=dict(classes=str(file)),
    )
    dataset = PackedCIFAR10(str(root), **given[how])
    assert dataset.metainfo['classes'] == names
    assert list(dataset.CLASSES) == names
    assert PackedCIFAR10.METAINFO['classes'] == tuple(CLASSES)


@pytest.mark.parametrize('names', [['cat', 'dog'], 'no file', 'ten chars!'])
def test_ten_names_are_needed(root, names):
    with pytest.raises(UserInputError, match=r'metainfo\.classes .* 10 names'):
        PackedCIFAR10(str(root), metainfo=dict(classes=names))


def test_rare_classes_can_be_repeated(root):
    dataset = PackedCIFAR10(str(root))
    assert dataset.get_gt_labels().tolist() == LABELS['train']
    # 0 and 7 are two of twelve images, the others one.
    balanced = ClassBalancedDataset(dataset, oversample_thr=2 / 12)
    labels = [balanced[i]['gt_label'] for i in range(len(balanced))]
    assert sorted(labels) == sorted(LABELS['train'] + [1, 2, 3, 4, 5, 6, 8, 9])


def test_it_needs_neither_mmpretrain_nor_mmdet(tmp_path):
    code = (
        'import importlib.util as util, sys\n'
        'find = util.find_spec\n'
        'util.find_spec = lambda name, *a: '
        "None if name == 'mmdet' else find(name, *a)\n"
        "sys.modules['mmdet'] = sys.modules['mmpretrain'] = None\n"
        f'sys.path.insert(0, {str(REPOSITORY)!r})\n'
        'from mmengine.registry import DATASETS\n'
        "print(DATASETS.get('sb_mm.PackedCIFAR10').__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith('PackedCIFAR10'), done.stderr


# What is refused


def error_of(root, split='train', **kwargs):
    with pytest.raises(UserInputError) as caught:
        PackedCIFAR10(str(root), split, **kwargs)
    message = str(caught.value)
    assert '\n' not in message
    assert message.endswith('.')
    return message


def test_an_unknown_split(root):
    message = error_of(root, 'val')
    assert message == "split must be 'train' or 'test', but got 'val'."


def test_a_missing_folder_and_a_missing_part_are_named(root, tmp_path):
    message = error_of(tmp_path / 'nothing')
    for name in ('train-0.npz', 'train-1.npz'):
        assert str(tmp_path / 'nothing' / name) in message
    (root / 'train-1.npz').unlink()
    message = error_of(root)
    assert message.startswith(f'{root}/train-1.npz not found')
    assert 'data_root' in message
    assert len(PackedCIFAR10(str(root), 'test')) == 2


class _Evil:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize(
    'kind', ['cut off', 'flipped', 'text', 'npy', 'pickled', 'an array less']
)
def test_a_damaged_file_is_named(root, tmp_path, kind):
    path, trace = root / 'test.npz', tmp_path / 'trace'
    content = path.read_bytes()
    if kind == 'cut off':
        path.write_bytes(content[: len(content) // 2])
    elif kind == 'flipped':
        middle = len(content) // 4
        byte = bytes([content[middle] ^ 1])
        path.write_bytes(content[:middle] + byte + content[middle + 1 :])
    elif kind == 'text':
        path.write_text('no archive at all')
    elif kind == 'npy':
        with path.open('wb') as file:
            np.save(file, np.zeros(3))
    elif kind == 'pickled':
        evil = np.array([_Evil(trace)], dtype=object)
        write_part(path, IMAGES['test'], [1, 2], labels=evil)
    else:
        write_part(path, IMAGES['test'], [1, 2], offsets=None)
    message = error_of(root, 'test')
    assert message.startswith(f'{path} is damaged or no packed CIFAR-10 (')
    assert 'copy it again' in message
    assert not trace.exists()


SIZE = sum(len(webp(p)) for p in IMAGES['test'])


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(labels=np.array([1, 10])), 'label 10 at image 1, not 0 to 9'),
        (dict(labels=np.array([-1, 9])), 'label -1 at image 0, not 0 to 9'),
        (dict(labels=np.array([1.0, 2.0])), 'Cannot cast'),
        (dict(labels=np.array([1, 2, 3])), '3 offsets for 3 labels'),
        (dict(labels=np.array([1])), '3 offsets for 1 labels'),
        (
            dict(labels=np.array([], int), offsets=np.array([0])),
            '1 offsets for 0 labels',
        ),
        (dict(offsets=np.array([0, 9, SIZE - 1])), f'divide its {SIZE} bytes'),
        (dict(offsets=np.array([1, 9, SIZE])), 'divide its'),
        (dict(offsets=np.array([0, 0, SIZE])), 'divide its'),
        (dict(offsets=np.array([0, SIZE + 9, SIZE])), 'divide its'),
        (dict(classes=np.array(CLASSES[::-1])), 'official order (airplane'),
        (dict(classes=np.array(CLASSES[:9])), 'official order'),
        (dict(webp=np.zeros(4, np.int64)), 'Cannot cast'),
    ],
)
def test_arrays_that_do_not_fit_are_named(root, changes, words):
    write_part(root / 'test.npz', IMAGES['test'], [1, 2], **changes)
    message = error_of(root, 'test')
    assert message.startswith(f'{root}/test.npz ')
    assert words in message


@pytest.mark.parametrize(
    'image',
    [
        b'RIFF and then nothing',
        webp(draw(1, 2)[0])[:200],
        webp(draw(1, 2, (16, 32, 3))[0]),
        webp(draw(1, 2, (32, 32, 4))[0]),
    ],
    ids=['no image', 'cut off', '32x16', 'transparent'],
)
def test_an_image_of_another_kind_is_named(root, image):
    path = root / 'train-1.npz'
    write_part(path, [IMAGES['train'][0], image], [1, 2])
    message = error_of(root)
    assert message.startswith(f'Image 1 of {path} is not a colour image')


# The real thing


@pytest.mark.skipif(
    not (DATA / 'cifar10').is_dir(), reason='no packed CIFAR-10 is there'
)
def test_the_real_training_images_have_the_published_mean():
    dataset = PackedCIFAR10(str(DATA / 'cifar10'))
    labels = [sample['gt_label'] for sample in dataset.data_list]
    assert np.bincount(labels).tolist() == [5000] * 10
    arrays = {id(s['img'].base): s['img'].base for s in dataset.data_list}
    mean = np.mean([a.mean((0, 1, 2)) for a in arrays.values()], 0) / 255
    published = [0.49139968, 0.48215841, 0.44653091]
    np.testing.assert_allclose(mean, published, atol=1e-8)
