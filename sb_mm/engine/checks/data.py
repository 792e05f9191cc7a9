"""What is refused before a model is built: data that cannot be trained on.

Which files make up CIFAR-10, which folder is which class and what counts as
an image is asked of the hosts' own datasets. They are recognised by name, so
that a detector's training need not import mmpretrain, nor the other way.
"""

import os
import os.path as osp
from collections.abc import Callable, Collection, Iterator, Sequence
from inspect import signature
from itertools import islice

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS, init_default_scope

from sb_mm.datasets.images import (
    ImageHeader,
    collect,
    decode,
    open_regular,
    read_header,
    warn_of,
)
from sb_mm.errors import UserInputError, first_few, first_line

from ..config import dataset_configs
from .classes import (
    build_dataset,
    check_class_count,
    check_class_lists,
    check_class_names,
    check_same_folders,
    class_folders,
    dataset_class,
    head_classes,
    metrics_of,
    open_dataset,
)
from .coco import box_notes, check_categories, read_coco

# Images that are decoded of a class folder, and of a list of images.
_PER_FOLDER, _PER_LIST = 2, 1000
# Images that take so long that whoever waits is told.
_MANY = 2000
_OTHER_SIZE = 'images have another size than their annotation file says'
_TURNED = (
    'images have an EXIF tag and are turned by it, but not their boxes, '
    "unless color_type of LoadImageFromFile is 'color_ignore_orientation'"
)


def check_data(
    cfg: Config, loaders: Collection[str], *, files: bool = True
) -> None:
    """Look at the data of the given loaders.

    Of VOC's and COCO's format every list, annotation and image is read, of
    folders of images the classes and a few images each, of CIFAR the files'
    checksums; CIFAR files that are missing are downloaded if the dataset
    may, as mmpretrain would do later. Of other datasets the data root and
    the annotation file must exist. Images are decoded as the pipeline will.

    Args:
        cfg: Config of the run.
        loaders: Names such as ``'train_dataloader'``.
        files: Look at the files, not only at the configs' lists of classes.

    Raises:
        UserInputError: Names the first few missing or invalid files, or
            lists of classes that differ.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    training = 'train_dataloader' in loaders
    found = list(dataset_configs(cfg))
    check_class_lists([d for d in found if training or d[0] in loaders])
    if not files:
        return
    checked: list[dict] = []
    for dataset in (d for loader, d in found if loader in loaders):
        reading = _reading_part(dataset)
        if reading not in checked:
            checked.append(reading)
            _checker_of(reading)(cfg, reading)
    check_same_folders([d for d in checked if _checker_of(d) is _check_folder])
    _check_metrics(cfg, loaders)


def _checker_of(dataset: dict) -> Callable[[Config, dict], None]:
    bases = dataset_class(dataset).__mro__
    names = (f'{base.__module__}.{base.__name__}' for base in bases)
    return next((_CHECKERS[n] for n in names if n in _CHECKERS), _check_paths)


def _reading_part(dataset: dict) -> dict:
    """Return the config with nothing in its pipeline but the reader."""
    pipeline = dataset.get('pipeline') or []
    readers = [t for t in pipeline if 'LoadImageFromFile' in str(t['type'])]
    return dict(dataset, pipeline=readers[:1])


# Images


def _check_images(
    dataset: dict, paths: Sequence[str]
) -> list[tuple[ImageHeader, tuple[int, int]]]:
    """Check and decode images; return heads and sizes (width, height)."""
    default = dict(type='LoadImageFromFile')
    reader = TRANSFORMS.build((dataset['pipeline'] or [default])[0])
    deep = getattr(reader, 'color_type', '') == 'unchanged'

    def check(path: str) -> tuple[ImageHeader, tuple[int, int]]:
        return read_header(path, deep=deep), decode(path, reader)

    _announce(len(paths))
    return collect(check, paths)


def _announce(count: int) -> None:
    if count > _MANY:
        print_log(
            f'Decoding {count:,} images to see that they are whole; '
            '--no-check leaves it out.',
            'current',
        )


# PASCAL VOC


def _check_voc(cfg: Config, dataset: dict) -> None:
    # Serializing collects garbage, for a second or two.
    built = build_dataset(dict(dataset, serialize_data=False))
    check_class_count(cfg, built.metainfo['classes'])
    _announce(len(built))
    built.check_images()


# COCO


def _check_coco(cfg: Config, dataset: dict) -> None:
    opened = open_dataset(dataset)
    file, folder = opened.ann_file, opened.data_prefix.get('img') or ''
    if '://' in file + folder:
        return
    content = read_coco(file)
    classes = list(opened.metainfo['classes'])
    check_categories(file, content, classes)
    check_class_count(cfg, classes)
    notes = box_notes(file, content, classes)
    _check_ids(cfg, file, content)
    images = content['images']
    paths = [osp.join(folder, image['file_name']) for image in images]
    found = zip(paths, _check_images(dataset, paths), images, strict=True)
    for path, (head, size), image in found:
        if size != (image['width'], image['height']):
            notes.append((_OTHER_SIZE, path))
        if head.orientation != 1:
            notes.append((_TURNED, path))
    warn_of(notes)


def _check_ids(cfg: Config, file: str, content: dict) -> None:
    read = [metric.get('ann_file') or '' for _, metric in metrics_of(cfg)]
    ids = [item['id'] for item in content['annotations']]
    if osp.abspath(file) in map(osp.abspath, read) and 0 in ids:
        raise UserInputError(
            f'{file} has an annotation with the id 0, which pycocotools '
            'takes for an object not found: number them from 1.'
        )


# CIFAR-10 and CIFAR-100


def _check_cifar(cfg: Config, dataset: dict) -> None:
    opened = open_dataset(dataset)
    check_class_count(cfg, opened.METAINFO['classes'])
    root = opened.data_prefix['root']
    try:
        if '://' not in root:
            opened.full_init()  # it compares checksums before it unpickles
    except Exception as error:  # of the network, the archive or the drive
        raise UserInputError(
            f'{root} does not hold the published files, and they could not '
            f'be had ({first_line(error)}): unpack {opened.url} there '
            'yourself.'
        ) from error


# Folders of images: ImageNet and CustomDataset


def _check_folder(cfg: Config, dataset: dict) -> None:
    opened = open_dataset(dataset)
    root = opened.img_prefix
    if '://' in root:
        return
    if not osp.isdir(root):
        raise UserInputError(
            f'{root} not found: set --data-root to the folder of the data.'
        )
    if opened.ann_file:
        _check_images(dataset, _listed_images(cfg, opened))
        return
    folders = [root]
    if opened.with_label:
        check_class_names(cfg, opened)
        folders = [osp.join(root, name) for name in class_folders(opened)]
    samples = [[*islice(_images(f, opened), _PER_FOLDER)] for f in folders]
    without = [f for f, own in zip(folders, samples, strict=True) if not own]
    if without:
        raise UserInputError(
            f'{len(without)} of {len(folders)} folders hold no image '
            f'({first_few(without)}): complete the copy, or delete them.'
        )
    _check_images(dataset, sum(samples, []))


def _images(folder: str, dataset: BaseDataset) -> Iterator[str]:
    """Yield what mmpretrain will load; it passes over hidden files."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _images(entry.path, dataset)
            elif entry.name[0] != '.' and dataset.is_valid_file(entry.name):
                yield entry.path


def _listed_images(cfg: Config, dataset: BaseDataset) -> list[str]:
    """Return some paths of an annotation file, of lines as ``a.jpg 0``."""
    open_regular(dataset.ann_file, 'give a file of paths and labels').close()
    try:
        samples = dataset.load_data_list()
    except ValueError as error:
        raise UserInputError(
            f'{dataset.ann_file} has a line that is no path and label '
            f'({first_line(error)}): correct it.'
        ) from error
    if not samples:
        raise UserInputError(
            f'{dataset.ann_file} is empty: write a line an image.'
        )
    for setting, count in head_classes(cfg).items():
        labels = {sample.get('gt_label', 0) for sample in samples}
        if beyond := sorted(labels - set(range(count))):
            raise UserInputError(
                f'{dataset.ann_file} has the label {beyond[-1]}, but the head '
                f'only 0 to {count - 1}: correct it, or {setting}.'
            )
    step = -(-len(samples) // _PER_LIST) or 1
    return [sample['img_path'] for sample in samples[::step]]


def _check_metrics(cfg: Config, loaders: Collection[str]) -> None:
    """Check that the annotation files of COCO's metrics are there."""
    for name, metric in metrics_of(cfg):
        loader = name.split('.')[0].replace('evaluator', 'dataloader')
        path = metric.get('ann_file') or ''
        if loader in loaders and not _is_there(path):
            raise UserInputError(
                f'The ann_file {path} of the metric {metric["type"]} is not '
                'there: give that of the dataset of its loader.'
            )


# Any other dataset


def _check_paths(cfg: Config, dataset: dict) -> None:
    """Check that the folder and the files of a host's dataset are there."""
    root = dataset.get('data_root') or ''
    prefixes = dataset.get('data_prefix') or {}
    prefixes = {'': prefixes} if isinstance(prefixes, str) else prefixes
    parts = [dataset.get('ann_file') or '', *prefixes.values()]
    needed = [root, *(osp.join(root, part) for part in parts if part)]
    missing = [path for path in needed if not _is_there(path)]
    # Some of mmpretrain's fetch themselves.
    accepted = signature(dataset_class(dataset).__init__).parameters
    fetches = 'download' in accepted and dataset.get('download', True)
    if missing and not fetches:
        raise UserInputError(
            f'{first_few(missing)} not found or empty: set --data-root to the '
            'folder of the data.'
        )


def _is_there(path: str) -> bool:
    if not path or '://' in path or osp.isfile(path):
        return True
    return osp.isdir(path) and len(os.listdir(path)) > 0


_CHECKERS = {
    'sb_mm.datasets.voc.VOCDevkitDataset': _check_voc,
    'mmdet.datasets.coco.CocoDataset': _check_coco,
    'mmpretrain.datasets.cifar.CIFAR10': _check_cifar,  # and CIFAR100
    # and ImageNet
    'mmpretrain.datasets.custom.CustomDataset': _check_folder,
}
