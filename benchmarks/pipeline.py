"""The input pipeline of SSD: sb_mm's augmentation against mmdet's."""

import contextlib
import copy
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import mmdet.datasets  # noqa: F401  fills the registry
import numpy as np
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

import sb_mm.datasets  # noqa: F401  fills the registry
from sb_mm.errors import UserInputError

from .measurement import Measurement, Settings, one_thread, take_turns

OURS, STOCK, FLOOR = 'sb_mm', 'mmdet', 'decode and resize alone'
CONFIG = Path(__file__).resolve().parents[1] / 'configs/ssd_sb_voc.py'
_WHERE = 'VOC2007/ImageSets/Main/trainval.txt'
_TINY = 33  # images: a batch and one more


def check_data(settings: Settings) -> None:
    """Raise unless the images are there.

    Raises:
        UserInputError: Names the file that is missing.
    """
    path = Path(settings.data_root, _WHERE)
    if not path.is_file():
        raise UserInputError(
            f'{path} does not exist: give the folder of VOCdevkit with '
            '--data-root, or choose other benchmarks with --only.'
        )


def augmentation(settings: Settings) -> Iterator[Measurement]:
    """Measure a training image, from the file to the packed tensor."""
    with one_thread():
        datasets = build_datasets(settings)
        number = len(datasets[OURS])
        paths = [
            datasets[OURS].get_data_info(i)['img_path'] for i in range(number)
        ]
        case = dict(images=number, size=300)
        calls = {k: _all_of(d) for k, d in datasets.items()}
        calls[FLOOR] = lambda: [_decode_and_resize(p) for p in paths]
        yield from take_turns(
            case, calls, settings.rounds, 1e3 / number, 'ms per image'
        )


def loading(settings: Settings) -> Iterator[Measurement]:
    """Measure the loader of the training as its processes grow in number."""
    with one_thread():
        datasets = build_datasets(settings)
        number = len(datasets[OURS])
        for workers in (0, 1) if settings.tiny else (0, 1, 2):
            calls = {k: _loader(d, workers) for k, d in datasets.items()}
            case = dict(workers=workers, batch=32, images=number)
            yield from take_turns(
                case,
                calls,
                min(5, settings.rounds),
                1e3 / number,
                'ms per image',
            )


def build_datasets(settings: Settings) -> dict:
    """Return the training set of VOC2007 with both pipelines."""
    with _training_set(settings) as config:
        return {
            STOCK: DATASETS.build(_with_stock_transforms(config)),
            OURS: DATASETS.build(config),
        }


def build_dataset(
    settings: Settings, images: int | None = None
) -> torch.utils.data.Dataset:
    """Return the training set of VOC2007, or the first images of it."""
    with _training_set(settings, images) as config:
        return DATASETS.build(config)


@contextlib.contextmanager
def _training_set(
    settings: Settings, images: int | None = None
) -> Iterator[ConfigDict]:
    """Give the config of VOC2007's training set, in which to build it."""
    check_data(settings)
    if images is None and settings.tiny:
        images = _TINY
    config = Config.fromfile(CONFIG).train_dataloader.dataset.datasets[0]
    config.data_root = settings.data_root
    np.random.seed(0)
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as names:
        if images is not None:
            # `indices` of the dataset would read all annotations before.
            with Path(settings.data_root, _WHERE).open() as lines:
                names.writelines(itertools.islice(lines, images))
            names.flush()
            config.ann_file = names.name
        with DefaultScope.overwrite_default_scope('mmdet'):
            yield config


def _with_stock_transforms(config: ConfigDict) -> ConfigDict:
    """Return the same with mmdet's transforms of the same parameters."""
    config = copy.deepcopy(config)
    before, names, ours, pack = config.pipeline
    config.pipeline = [
        before,
        names,
        dict(type='PhotoMetricDistortion', **ours.photometric),
        dict(type='Expand', **ours.expand),
        dict(type='MinIoURandomCrop', **ours.crop),
        dict(type='Resize', scale=ours.scale, keep_ratio=False),
        dict(type='RandomFlip', prob=ours.flip_prob),
        pack,
    ]
    return config


def _all_of(dataset: torch.utils.data.Dataset) -> Callable[[], None]:
    def run() -> None:
        for i in range(len(dataset)):
            dataset[i]

    return run


def _loader(
    dataset: torch.utils.data.Dataset, workers: int
) -> Callable[[], None]:
    """Return what loads an epoch; the processes live on, as in a training."""
    loader = Runner.build_dataloader(
        dict(
            dataset=dataset,
            batch_size=32,
            num_workers=workers,
            persistent_workers=workers > 0,
            sampler=dict(type='DefaultSampler', shuffle=True),
        )
    )

    def run() -> None:
        for _ in loader:
            pass

    return run


def _decode_and_resize(path: str) -> np.ndarray:
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    return cv2.resize(image, (300, 300))
