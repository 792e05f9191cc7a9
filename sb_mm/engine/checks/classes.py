"""Datasets of a config and their classes, before any data are read."""

import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from sb_mm.datasets.annotation import nfc
from sb_mm.errors import UserInputError, first_few, first_line, shorten


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


def open_dataset(dataset: dict) -> BaseDataset:
    """Build a dataset that has not yet read its data."""
    return build_dataset(dict(dataset, pipeline=[], lazy_init=True))


def build_dataset(dataset: dict) -> BaseDataset:
    """Build a dataset, with a sentence for what a host raises."""
    try:
        return DATASETS.build(dataset)
    except UserInputError:
        raise
    except Exception as error:  # a host's constructor can raise anything
        raise UserInputError(
            f'The dataset {dataset["type"]} cannot be made of its settings '
            f'({first_line(error)}): correct them.'
        ) from error


def check_class_lists(datasets: Sequence[tuple[str, dict]]) -> None:
    """Compare the names that configs and dataset classes give, if any."""
    known = [
        (loader, [str(name) for name in classes])
        for loader, dataset in datasets
        if issubclass(dataset_class(dataset), BaseDataset)
        and (classes := open_dataset(dataset).metainfo.get('classes'))
        and not isinstance(classes, str)
    ]
    remedy = 'give both the same metainfo.classes, in the same order'
    check_equal(known, remedy)


def check_same_folders(datasets: Sequence[dict]) -> None:
    """Compare the folders by which images of a dataset are labelled."""
    opened = map(open_dataset, datasets)
    check_equal(
        [
            (dataset.img_prefix, class_folders(dataset))
            for dataset in opened
            if dataset.with_label and not dataset.ann_file
        ],
        'complete the copy, or delete or rename the odd folders',
    )


def check_equal(
    known: Sequence[tuple[str, Sequence[str]]], remedy: str
) -> None:
    """Compare lists of classes, each with whose it is."""
    for (one, names), (other, others) in pairwise(known):
        ours, theirs = [*map(nfc, names)], [*map(nfc, others)]
        if ours == theirs:
            continue
        odd = sorted({*ours} ^ {*theirs})
        odd = f' ({first_few(odd)} in one of them only)' if odd else ''
        raise UserInputError(
            f'{one} has the classes {listed(names)} and {other} '
            f'{listed(others)}{odd}, and a label is a place in that list: '
            f'{remedy}.'
        )


def listed(names: Sequence[str]) -> str:
    """Return names as they stand in a sentence."""
    return f'({first_few(list(names), limit=10)})'


def check_class_count(cfg: Config, classes: Sequence[str]) -> None:
    """Raise if the head's classes are not as many as the dataset's.

    Raises:
        UserInputError: Names both numbers, or more classes than there are
            among which a metric or the head looks for the right one.
    """
    for setting, count in head_classes(cfg).items():
        if count != len(classes):
            raise UserInputError(
                f'The head has num_classes={count}, but the dataset has '
                f'{len(classes)} classes ({first_few(list(classes))}): set '
                f'{setting} to that number.'
            )
    _check_soft_labels(cfg, len(classes))
    if options := _topk_options(cfg, len(classes)):
        raise UserInputError(
            f'The dataset has {len(classes)} classes, fewer than topk of the '
            f'metric or the head: add `--cfg-options {options}`.'
        )


def _check_soft_labels(cfg: Config, count: int) -> None:
    """Raise if Mixup or CutMix mixes labels that the head cannot take."""
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


def head_classes(cfg: Config) -> dict[str, int]:
    """Return the settings of the heads' ``num_classes``, and their values."""
    heads = {name: cfg.model.get(name) or {} for name in ('head', 'bbox_head')}
    return {
        f'model.{name}.num_classes': head['num_classes']
        for name, head in heads.items()
        if 'num_classes' in head
    }


def metrics_of(cfg: Config) -> Iterator[tuple[str, dict]]:
    """Yield each metric of a config, and its setting's name."""
    for name in ('val_evaluator', 'test_evaluator'):
        metrics = cfg.get(name) or []
        if isinstance(metrics, dict):
            yield name, metrics
        else:
            yield from ((f'{name}.{i}', m) for i, m in enumerate(metrics))


def _topk_options(cfg: Config, count: int) -> str:
    """Return the options that lower every ``topk`` beyond ``count``."""
    found = dict(metrics_of(cfg))
    head = cfg.model.get('head') or {}
    if head.get('cal_acc'):
        found['model.head'] = head
    topk = {name: config.get('topk') or 1 for name, config in found.items()}
    return ' '.join(
        f'{name}.topk=1'
        for name, k in topk.items()
        if (k if isinstance(k, int) else max(k)) > count
    )


# Folders of images, one a class


def class_folders(dataset: BaseDataset) -> list[str]:
    """Return the folders in the order of their labels."""
    from mmpretrain.datasets.custom import find_folders

    return find_folders(dataset.img_prefix)[0]


def check_class_names(cfg: Config, dataset: BaseDataset) -> None:
    """Compare the names that the config or the class gives, if any."""
    folders, root = class_folders(dataset), dataset.img_prefix
    names = dataset.CLASSES or folders
    if isinstance(names, str):
        raise UserInputError(
            f'metainfo.classes is {shorten(names)!r}, but there is no such '
            'file: give the names, or a file with one name a line.'
        )
    if not folders:
        raise UserInputError(
            f'{root} holds no folders: put the images of each class into a '
            'folder of its own.'
        )
    if len(names) != len(folders):
        options = [f'model.head.num_classes={len(folders)}'] + [
            f'{name}_dataloader.dataset.metainfo.classes=classes.txt'
            for name in ('train', 'val', 'test')
        ]
        if 'num_classes' in (cfg.get('data_preprocessor') or {}):
            options.append(f'data_preprocessor.num_classes={len(folders)}')
        options.append(_topk_options(cfg, len(folders)))
        raise UserInputError(
            f'{root} holds {len(folders)} class folders '
            f'({first_few(folders)}), but metainfo.classes has {len(names)} '
            'names: complete the copy, or, for other classes, run `LC_ALL=C '
            f'ls {shlex.quote(root)} > classes.txt` and add `--cfg-options '
            f'{" ".join(options).strip()}`.'
        )
    names = [str(name) for name in names]
    if sorted(map(nfc, names)) == sorted(map(nfc, folders)):
        lists = ('metainfo.classes', names), (f'{root}, sorted,', folders)
        check_equal(lists, f'give {listed(folders)}')
    check_class_count(cfg, folders)
