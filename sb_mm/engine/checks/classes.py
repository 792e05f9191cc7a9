"""Datasets of a config and their classes, before any data are read."""

import shlex
from collections.abc import Sequence
from itertools import pairwise, zip_longest

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from sb_mm.errors import UserInputError, explain, first_few, shorten
from sb_mm.files import nfc

from ..config import metrics_of
from .options import find_class


def open_dataset(dataset: dict) -> BaseDataset | None:
    """Build a dataset of MMEngine, without data and with a reader at most."""
    kind, pipeline = dataset['type'], dataset.get('pipeline') or []
    if (cls := find_class(kind)) is None:
        raise UserInputError(
            f'The dataset {kind} is unknown: correct the type, or name the '
            'module that defines it in custom_imports.'
        )
    if not issubclass(cls, BaseDataset):
        return None
    readers = [t for t in pipeline if 'LoadImageFromFile' in str(t['type'])]
    lazy = dict(dataset, pipeline=readers[:1], lazy_init=True)
    fault = f'The dataset {kind} cannot be made of its settings'
    with explain(fault, 'correct them'):
        built = DATASETS.build(lazy)
    if isinstance(names := built.metainfo.get('classes'), str):
        raise UserInputError(
            f'metainfo.classes is {shorten(names)!r}, but there is no such '
            'file: give the names, or a file with one name a line.'
        )
    return built


def given_classes(dataset: BaseDataset | None) -> list[str]:
    """Return the names that a config or a class of datasets gives, if any."""
    names = None if dataset is None else dataset.metainfo.get('classes')
    return [str(name) for name in names or ()]


def check_equal(
    known: Sequence[tuple[str, Sequence[str]]], remedy: str
) -> None:
    """Raise UserInputError if lists differ; each comes with whose it is."""
    for (one, names), (other, others) in pairwise(known):
        ours, theirs = [*map(nfc, names)], [*map(nfc, others)]
        if ours == theirs:
            continue
        where = 'in one of them only'
        odd = sorted({*ours} ^ {*theirs})
        if not odd:
            where = 'at another place'
            odd = [a or b for a, b in zip_longest(ours, theirs) if a != b]
        raise UserInputError(
            f'{one} has the classes {listed(names)} and {other} '
            f'{listed(others)} ({first_few(odd)} {where}), and a label is a '
            f'place in that list: {remedy}.'
        )


def listed(names: Sequence[str]) -> str:
    """Return names as they stand in a sentence."""
    return f'({first_few(names, limit=10)})'


def head_classes(cfg: Config) -> dict[str, int]:
    """Return the settings of the heads' ``num_classes``, and their values."""
    heads = {name: cfg.model.get(name) or {} for name in ('head', 'bbox_head')}
    return {
        f'model.{name}.num_classes': head['num_classes']
        for name, head in heads.items()
        if 'num_classes' in head
    }


def check_class_count(cfg: Config, classes: Sequence[str]) -> None:
    """Raise if the model or a metric is made for another number of classes."""
    count = len(classes)
    for setting, own in head_classes(cfg).items():
        if own != count:
            raise UserInputError(
                f'The head has num_classes={own}, but the dataset has {count} '
                f'classes ({first_few(classes)}): set {setting} to that '
                'number.'
            )
    loss = (cfg.model.get('head') or {}).get('loss') or {}
    mixed = (cfg.model.get('train_cfg') or {}).get('augments')
    sized = (cfg.get('data_preprocessor') or {}).get('num_classes', count)
    hard = loss.get('type') == 'CrossEntropyLoss' and not loss.get('use_soft')
    if mixed and (hard or sized != count):
        raise UserInputError(
            'model.train_cfg.augments mixes labels: add `--cfg-options '
            'model.head.loss.use_soft=True '
            f'data_preprocessor.num_classes={count}`.'
        )
    if options := _topk_options(cfg, count):
        raise UserInputError(
            f'The dataset has {count} classes, fewer than topk of the metric '
            f'or the head: add `--cfg-options {" ".join(options)}`.'
        )


def _topk_options(cfg: Config, count: int) -> list[str]:
    """Return the options that lower every ``topk`` beyond ``count``."""
    found = dict(metrics_of(cfg))
    head = cfg.model.get('head') or {}
    if head.get('cal_acc'):
        found['model.head'] = head
    topk = {name: config.get('topk') or 1 for name, config in found.items()}
    return [
        f'{name}.topk=1'
        for name, k in topk.items()
        if (k if isinstance(k, int) else max(k)) > count
    ]


# Folders of images, one a class


def class_folders(dataset: BaseDataset) -> list[str]:
    """Return the folders in the order of their labels, if they are labels."""
    if not getattr(dataset, 'with_label', False) or dataset.ann_file:
        return []
    from mmpretrain.datasets.custom import find_folders

    return find_folders(dataset.img_prefix)[0]


def check_class_folders(cfg: Config, dataset: BaseDataset) -> None:
    """Compare the folders with the names that are given, and the model."""
    folders, root = class_folders(dataset), dataset.img_prefix
    names = given_classes(dataset) or folders
    if not folders:
        raise UserInputError(
            f'{root} holds no folders: put the images of each class into a '
            'folder of its own.'
        )
    if len(names) != len(folders):
        _refuse_names(cfg, root, folders, names)
    if sorted(map(nfc, names)) == sorted(map(nfc, folders)):
        lists = ('metainfo.classes', names), (f'{root}, sorted,', folders)
        check_equal(lists, f'give {listed(folders)}')
    check_class_count(cfg, folders)


def _refuse_names(
    cfg: Config, root: str, folders: Sequence[str], names: Sequence[str]
) -> None:
    count = len(folders)
    options = [f'model.head.num_classes={count}'] + [
        f'{name}_dataloader.dataset.metainfo.classes=classes.txt'
        for name in ('train', 'val', 'test')
    ]
    if 'num_classes' in (cfg.get('data_preprocessor') or {}):
        options.append(f'data_preprocessor.num_classes={count}')
    options += _topk_options(cfg, count)
    raise UserInputError(
        f'{root} holds {count} class folders ({first_few(folders)}), but '
        f'metainfo.classes has {len(names)} names: complete the copy, or, for '
        f'other classes, run `LC_ALL=C ls {shlex.quote(root)} > classes.txt` '
        f'and add `--cfg-options {" ".join(options)}`.'
    )
