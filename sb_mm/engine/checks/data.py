"""Data that cannot be trained on are refused before a model is built.

Which files make up CIFAR-10, which folder is which class and what counts as
an image is asked of the hosts' own datasets.
"""

import os
import os.path as osp
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from sb_mm.datasets.images import (
    ImageHeader,
    collect,
    decode,
    open_regular,
    read_header,
    warn_of,
)
from sb_mm.errors import UserInputError, explain, first_few

from ..config import dataset_configs, metrics_of
from .classes import (
    check_class_count,
    check_class_folders,
    check_equal,
    class_folders,
    given_classes,
    head_classes,
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
    """Look at the data of loaders such as ``'train_dataloader'``.

    Of VOC's and COCO's format every list, annotation and image is read, of
    folders of images the classes and a few images each, of CIFAR the files'
    checksums. Of other datasets the paths must exist. Without ``files``, only
    the configs' lists of classes are compared.

    Raises:
        UserInputError: Names the first few invalid files, or classes.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    datasets, given = {}, []
    for loader, config in dataset_configs(cfg):
        if loader in loaders or 'train_dataloader' in loaders:
            dataset = open_dataset(config)
            if names := given_classes(dataset):
                given.append((loader, names))
            if loader in loaders and dataset is not None:
                # Where only what comes behind the reader differs, once.
                reader = getattr(dataset, 'pipeline', None)
                datasets[str(dict(config, pipeline=reader))] = dataset
            elif loader in loaders and files and not config.get('download'):
                _need(_named_paths(config))
    remedy = 'give both the same metainfo.classes, in the same order'
    check_equal(given, remedy)
    if not files:
        return
    # The evaluators of other loaders do not matter.
    other = {'val_evaluator', 'test_evaluator'}
    other -= {name.replace('dataloader', 'evaluator') for name in loaders}
    cfg = Config({k: v for k, v in cfg.items() if k not in other})
    _check_files(cfg, datasets.values())


def _check_files(cfg: Config, datasets: Collection[BaseDataset]) -> None:
    for dataset in datasets:
        bases = type(dataset).__mro__
        names = (f'{base.__module__}.{base.__name__}' for base in bases)
        checks = (_CHECKERS[name] for name in names if name in _CHECKERS)
        next(checks, _check_paths)(cfg, dataset)
    folders = [(d.img_prefix, f) for d in datasets if (f := class_folders(d))]
    remedy = 'complete the copy, or delete or rename the odd folders'
    check_equal(folders, remedy)
    for _, metric in metrics_of(cfg):
        if not _is_there(path := metric.get('ann_file') or ''):
            raise UserInputError(
                f'The ann_file {path} of the metric {metric["type"]} is not '
                'there: give that of the dataset of its loader.'
            )


def _check_images(
    dataset: BaseDataset, paths: Sequence[str]
) -> list[tuple[ImageHeader, tuple[int, int]]]:
    """Check and decode images; return heads and sizes (width, height)."""
    (reader,) = dataset.pipeline.transforms or [LoadImageFromFile()]
    deep = getattr(reader, 'color_type', '') == 'unchanged'

    def check(path: str) -> tuple[ImageHeader, tuple[int, int]]:
        return read_header(path, deep=deep), decode(path, reader)

    _announce(len(paths))
    return collect(check, paths)


def _announce(count: int) -> None:
    if count > _MANY:
        print_log(f'Decoding {count:,} images; --no-check leaves it out.')


def _check_voc(cfg: Config, dataset: BaseDataset) -> None:
    # Serializing collects garbage, for a second or two.
    dataset.serialize_data = False
    with explain('The dataset cannot be made of its settings', 'correct them'):
        dataset.full_init()
    check_class_count(cfg, dataset.metainfo['classes'])
    _announce(len(dataset))
    dataset.check_images()


def _check_coco(cfg: Config, dataset: BaseDataset) -> None:
    file, folder = dataset.ann_file, dataset.data_prefix.get('img') or ''
    if '://' in file + folder:
        return
    content = read_coco(file)
    classes = given_classes(dataset)
    check_categories(file, content, classes)
    check_class_count(cfg, classes)
    notes = box_notes(file, content, classes)
    ids = [item['id'] for item in content['annotations']]
    read = [metric.get('ann_file') or '' for _, metric in metrics_of(cfg)]
    if 0 in ids and osp.abspath(file) in map(osp.abspath, read):
        raise UserInputError(
            f'{file} has an annotation with the id 0, which pycocotools '
            'takes for an object not found: number them from 1.'
        )
    images = content['images']
    paths = [osp.join(folder, image['file_name']) for image in images]
    found = zip(paths, _check_images(dataset, paths), images, strict=True)
    for path, (head, size), image in found:
        if size != (image['width'], image['height']):
            notes.append((_OTHER_SIZE, path))
        if head.orientation != 1:
            notes.append((_TURNED, path))
    warn_of(notes)


def _check_cifar(cfg: Config, dataset: BaseDataset) -> None:
    check_class_count(cfg, dataset.METAINFO['classes'])
    root = dataset.data_prefix['root']
    fault = f'{root} does not hold the published files, nor can they be had'
    with explain(fault, f'unpack {dataset.url} there yourself'):
        if '://' not in root:
            dataset.full_init()  # it compares checksums before it unpickles


# Folders of images: ImageNet and CustomDataset


def _check_folder(cfg: Config, dataset: BaseDataset) -> None:
    root = dataset.img_prefix
    if '://' in root:
        return
    if not osp.isdir(root):
        raise UserInputError(
            f'{root} not found: set --data-root to the folder of the data.'
        )
    if dataset.ann_file:
        _check_images(dataset, _listed_images(cfg, dataset))
        return
    folders = [root]
    if dataset.with_label:
        check_class_folders(cfg, dataset)
        folders = [osp.join(root, name) for name in class_folders(dataset)]
    samples = [[*islice(_images(f, dataset), _PER_FOLDER)] for f in folders]
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
    file = dataset.ann_file
    open_regular(file, 'give a file of paths and labels').close()
    with explain(f'{file} has a line that is no path and label', 'correct it'):
        samples = dataset.load_data_list()
    if not samples:
        raise UserInputError(f'{file} is empty: write a line an image.')
    for setting, count in head_classes(cfg).items():
        labels = {sample.get('gt_label', 0) for sample in samples}
        if beyond := sorted(labels - set(range(count))):
            raise UserInputError(
                f'{file} has the label {beyond[-1]}, but the head only 0 to '
                f'{count - 1}: correct it, or {setting}.'
            )
    step = -(-len(samples) // _PER_LIST)
    return [sample['img_path'] for sample in samples[::step]]


def _check_paths(cfg: Config, dataset: BaseDataset) -> None:
    if getattr(dataset, 'download', False):  # some of mmpretrain's can
        return
    prefixes = dataset.data_prefix.values()
    _need([dataset.data_root, dataset.ann_file, *prefixes])


def _named_paths(config: dict) -> list[str]:
    """Return what a dataset of another base than MMEngine's names."""
    root, prefixes = config.get('data_root'), config.get('data_prefix') or {}
    prefixes = [prefixes] if isinstance(prefixes, str) else prefixes.values()
    parts = ['', config.get('ann_file'), *prefixes]
    return [osp.join(root or '', part or '') for part in parts]


def _need(paths: Sequence[str]) -> None:
    if missing := [p for p in dict.fromkeys(paths) if not _is_there(p)]:
        raise UserInputError(
            f'{first_few(missing)} not found or empty: set --data-root to the '
            'folder of the data.'
        )


def _is_there(path: str) -> bool:
    if not path or '://' in path or osp.isfile(path):
        return True
    return osp.isdir(path) and len(os.listdir(path)) > 0


# By name: a detector's training need not import mmpretrain, nor the other way.
_CHECKERS = {
    'sb_mm.datasets.voc.VOCDevkitDataset': _check_voc,
    'mmdet.datasets.coco.CocoDataset': _check_coco,
    'mmpretrain.datasets.cifar.CIFAR10': _check_cifar,  # and CIFAR100
    # and ImageNet
    'mmpretrain.datasets.custom.CustomDataset': _check_folder,
}
