"""Checks of data for classification, before a model is built.

Which files make up CIFAR-10, which folder is which class and what counts as
an image is asked of mmpretrain's own datasets. They are recognised by name,
so that a detector's run need not import mmpretrain.
"""

import logging
import os
import os.path as osp
import shlex
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from sb_mm.errors import UserInputError, first_few, first_line

_CIFAR = 'mmpretrain.datasets.cifar.CIFAR10'  # and CIFAR100 below it
_FOLDERS = 'mmpretrain.datasets.custom.CustomDataset'  # and ImageNet
_IMAGENET = 'mmpretrain.datasets.imagenet.ImageNet'
# Images of ImageNet-1k, by the folder that the splits come in.
_IMAGENET_IMAGES = dict(train=1_281_167, val=50_000)
# Hides the latency of a network drive; a local one is no slower for it.
_THREADS = 16
_SUBSTITUTES = {
    'cifar-10-python.tar.gz': ', or set the type sb_mm.PackedCIFAR10 and the '
    'folder of its files',
}
# What the launchers call the number of a process.
_RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def check_classification_data(cfg: Config, datasets: Iterable[dict]) -> None:
    """Check mmpretrain's CIFAR datasets and its folders of images.

    CIFAR files that are missing or damaged are downloaded if the dataset
    may, as mmpretrain would do later. Of 1.28 million images the sizes are
    read in 6 seconds on a local drive. What lies on a remote storage backend
    is passed over, and so are the datasets of other classes.

    Args:
        cfg: Config of the run.
        datasets: Configs of datasets, without wrappers.

    Raises:
        UserInputError: Names the first few missing or unusable files, or the
            numbers of classes that differ.
    """
    datasets = list(datasets)
    for dataset in datasets:
        if _is_a(dataset, _CIFAR):
            _check_cifar(cfg, _open(dataset))
    folders = [_open(item) for item in datasets if _is_a(item, _FOLDERS)]
    folders = [item for item in folders if '://' not in item.img_prefix]
    # From what takes no time to what takes seconds.
    labelled = [item for item in folders if _is_labelled_by_folder(item)]
    for item in folders:
        _check_folder(item)
    for one, other in pairwise(labelled):
        _check_same_folders(one, other)
    for item in labelled:
        _check_class_names(item)
        check_class_count(cfg, _class_folders(item))
    for item in folders:
        groups = _image_groups(cfg, item)
        _refuse_empty(item, groups)
        _warn_of_partial_imagenet(item, sum(map(len, groups)))


def dataset_class(dataset: dict) -> type:
    """Return the class that a config's ``type`` names.

    Raises:
        UserInputError: If it is not registered.
    """
    kind = dataset['type']
    if not isinstance(kind, str):
        return kind
    # As DATASETS.build does: the class may be one of the default scope.
    with DATASETS.switch_scope_and_registry(None) as registry:
        cls = registry.get(kind)
    if cls is None:
        raise UserInputError(
            f'The dataset {kind} is unknown: correct the type, or name the '
            'module that defines it in custom_imports.'
        )
    return cls


def check_class_count(cfg: Config, classes: Sequence[str]) -> None:
    """Raise if the head's classes are not as many as the dataset's.

    Raises:
        UserInputError: Names both numbers.
    """
    for setting, count in _head_classes(cfg).items():
        if count != len(classes):
            raise UserInputError(
                f'The head has num_classes={count}, but the dataset has '
                f'{len(classes)} classes ({first_few(list(classes))}): set '
                f'{setting} to that number.'
            )


def _head_classes(cfg: Config) -> dict[str, int]:
    """Return ``num_classes`` of mmpretrain's or mmdet's head, if it has any.

    The key is the name of the setting.
    """
    heads = {name: cfg.model.get(name) or {} for name in ('head', 'bbox_head')}
    return {
        f'model.{name}.num_classes': head['num_classes']
        for name, head in heads.items()
        if 'num_classes' in head
    }


def _is_a(dataset: dict, name: str) -> bool:
    bases = dataset_class(dataset).__mro__
    return name in (f'{base.__module__}.{base.__name__}' for base in bases)


def _open(dataset: dict) -> BaseDataset:
    """Build a dataset that has not yet read its data."""
    try:
        return DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))
    except Exception as error:  # a host's constructor can raise anything
        raise UserInputError(
            f'The dataset {dataset["type"]} cannot be made of its settings '
            f'({first_line(error)}): correct them.'
        ) from error


# CIFAR-10 and CIFAR-100


def _check_cifar(cfg: Config, dataset: BaseDataset) -> None:
    check_class_count(cfg, dataset.METAINFO['classes'])
    # The others wait for this one when they join it, before they load data.
    if _is_main_process(cfg) and '://' not in dataset.data_prefix['root']:
        _complete_cifar(dataset)


def _is_main_process(cfg: Config) -> bool:
    """Whether this is the first process; none has joined the others yet."""
    variable = _RANKS.get(cfg.get('launcher') or 'none', '')
    return os.environ.get(variable, '0') == '0'


def _complete_cifar(dataset: BaseDataset) -> None:
    fault, why = _cifar_fault(dataset), 'download=False'
    if fault and dataset.download:
        why = _download_cifar(dataset)
        fault = _cifar_fault(dataset)
    if fault:
        raise UserInputError(f'{fault} ({why}): {_cifar_remedy(dataset)}.')


def _cifar_fault(dataset: BaseDataset) -> str:
    """Name the official files that are not there, or not as published."""
    from mmpretrain.datasets.utils import check_integrity

    folder = osp.join(dataset.data_prefix['root'], dataset.base_folder)
    files = dict([*dataset.train_list, *dataset.test_list])
    wrong = [
        f'{name} ({"damaged" if osp.exists(path) else "missing"})'
        for name, md5 in files.items()
        if not check_integrity(path := osp.join(folder, name), md5)
    ]
    return f'{folder} lacks {first_few(wrong)}' if wrong else ''


def _download_cifar(dataset: BaseDataset) -> str:
    """Download and unpack the archive as mmpretrain does; say what failed."""
    from mmpretrain.datasets.utils import download_and_extract_archive

    try:
        download_and_extract_archive(
            dataset.url,
            dataset.data_prefix['root'],
            filename=dataset.filename,
            md5=dataset.tgz_md5,
        )
    except Exception as error:  # of the network, the archive or the drive
        return f'the download failed: {first_line(error)}'
    return 'the downloaded archive does not hold them'


def _cifar_remedy(dataset: BaseDataset) -> str:
    from mmpretrain.datasets.utils import check_integrity

    root = dataset.data_prefix['root']
    archive = osp.join(root, dataset.filename)
    broken = osp.exists(archive) and not check_integrity(
        archive, dataset.tgz_md5
    )
    delete = f'delete {archive}, which is cut off or damaged, and ' * broken
    other = _SUBSTITUTES.get(dataset.filename, '')
    return f'{delete}unpack {dataset.url} in {root} yourself{other}'


# Folders of images: ImageNet and CustomDataset


def _is_labelled_by_folder(dataset: BaseDataset) -> bool:
    return dataset.with_label and not dataset.ann_file


def _check_folder(dataset: BaseDataset) -> None:
    if not osp.isdir(dataset.img_prefix):
        raise UserInputError(
            f'{dataset.img_prefix} not found: set --data-root to the folder '
            'of the data.'
        )


def _class_folders(dataset: BaseDataset) -> list[str]:
    """Return the folders in the order of their labels."""
    from mmpretrain.datasets.custom import find_folders

    return find_folders(dataset.img_prefix)[0]


def _check_same_folders(one: BaseDataset, other: BaseDataset) -> None:
    differing = {*_class_folders(one)} ^ {*_class_folders(other)}
    if differing:
        raise UserInputError(
            f'{one.img_prefix} and {other.img_prefix} do not have the same '
            f'class folders ({first_few(sorted(differing))} in one of them '
            'only), and a label is the place of a folder among the sorted '
            'ones: complete the copy, or delete or rename the odd folders.'
        )


def _check_class_names(dataset: BaseDataset) -> None:
    """Compare the names that the config or the class gives, if any."""
    folders, root = _class_folders(dataset), dataset.img_prefix
    names = dataset.CLASSES or folders
    if isinstance(names, str):
        raise UserInputError(
            f'metainfo.classes is {names!r}, but there is no such file: give '
            'the names, or a file with one name a line.'
        )
    if not folders:
        raise UserInputError(
            f'{root} holds no folders: put the images of each class into a '
            'folder of its own.'
        )
    if len(names) != len(folders):
        setting = 'dataset.metainfo.classes=classes.txt'
        raise UserInputError(
            f'{root} holds {len(folders)} class folders '
            f'({first_few(folders)}), but metainfo.classes has {len(names)} '
            'names: complete the copy, or, for other classes, run `ls '
            f'{shlex.quote(root)} > classes.txt` and add `--cfg-options '
            f'model.head.num_classes={len(folders)} '
            f'train_dataloader.{setting} val_dataloader.{setting} '
            f'test_dataloader.{setting}`.'
        )


def _image_groups(cfg: Config, dataset: BaseDataset) -> list[list[str]]:
    """Return the paths of all images, in parts for the threads."""
    if dataset.ann_file:
        paths = _listed_images(cfg, dataset)
        return [paths[i::_THREADS] for i in range(_THREADS)]
    labelled = _is_labelled_by_folder(dataset)
    names = _class_folders(dataset) if labelled else ['']
    folders = [osp.join(dataset.img_prefix, name) for name in names]
    groups = [_images_below(folder, dataset) for folder in folders]
    pairs = zip(folders, groups, strict=True)
    if without := [folder for folder, paths in pairs if not paths]:
        raise UserInputError(
            f'{len(without)} of {len(folders)} folders hold no image '
            f'({first_few(without)}): complete the copy, or delete them.'
        )
    return groups


def _listed_images(cfg: Config, dataset: BaseDataset) -> list[str]:
    """Read an annotation file, of lines such as ``folder/a.jpg 0``."""
    try:
        samples = dataset.load_data_list()
    except ValueError as error:
        raise UserInputError(
            f'{dataset.ann_file} has a line that is no path and label '
            f'({first_line(error)}): correct it.'
        ) from error
    for setting, count in _head_classes(cfg).items():
        labels = {sample.get('gt_label', 0) for sample in samples}
        if beyond := sorted(labels - set(range(count))):
            raise UserInputError(
                f'{dataset.ann_file} has the label {beyond[-1]}, but the head '
                f'only 0 to {count - 1}: correct it, or {setting}.'
            )
    return [sample['img_path'] for sample in samples]


def _images_below(folder: str, dataset: BaseDataset) -> list[str]:
    """Return what mmpretrain will load; it passes over hidden files."""
    return [
        osp.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.startswith('.') and dataset.is_valid_file(name)
    ]


def _refuse_empty(dataset: BaseDataset, groups: Iterable[list[str]]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        empty = sorted(chain.from_iterable(pool.map(_empty_files, groups)))
    if empty:
        raise UserInputError(
            f'{len(empty)} images of {dataset.img_prefix} are empty files '
            f'or not there ({first_few(empty)}): copy them again.'
        )


def _warn_of_partial_imagenet(dataset: BaseDataset, count: int) -> None:
    """Warn only: many people leave a few damaged images out."""
    kind = f'{type(dataset).__module__}.{type(dataset).__name__}'
    whole = _IMAGENET_IMAGES.get(Path(dataset.img_prefix).name, count)
    if kind != _IMAGENET or count == whole:
        return
    if list(dataset.CLASSES) != list(dataset.METAINFO['classes']):
        return  # a subset on purpose
    print_log(
        f'{dataset.img_prefix} holds {count:,} images instead of the '
        f'{whole:,} of ImageNet-1k: if the copy was interrupted, complete it.',
        'current',
        logging.WARNING,
    )


def _empty_files(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if _size(path) == 0]


def _size(path: str) -> int:
    """Size in bytes; 0 too for a broken link or what cannot be looked at."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
