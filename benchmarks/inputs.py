"""What brings images to the networks: ours against the hosts'."""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import mmpretrain.datasets
import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS
from torch.utils.data import DataLoader

import sb_mm.datasets  # noqa: F401  fills the registry
from sb_mm.errors import UserInputError

from .measure import Pair, Row, Settings, in_turns, one_thread

_CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
_IMAGES = 320  # of VOC2007, at most
_MOST_WORKERS = 16


def augmentation(settings: Settings) -> Iterator[Row]:
    """Time a training image of SSD, from the file to the packed tensor."""
    with one_thread():
        calls = {k: _all_of(d) for k, d in _voc(settings).items()}
        pairs = [Pair('sb_mm', 'mmdet', 0.333)]
        images = len(next(iter(_voc(settings).values())))
        what = f"SSD's augmentation, {images} images, one thread"
        yield from in_turns(what, calls, pairs, settings, images=images)


def loading(settings: Settings) -> Iterator[Row]:
    """Time the loader of SSD's training with two dataloader workers."""
    with one_thread():
        datasets = _voc(settings)
        images = len(datasets['mmdet'])
        loaders = {
            name: Runner.build_dataloader(
                dict(
                    dataset=dataset,
                    batch_size=32,
                    num_workers=2,
                    persistent_workers=True,
                    sampler=dict(type='DefaultSampler', shuffle=True),
                )
            )
            for name, dataset in datasets.items()
        }
        calls = {name: _epoch(loader) for name, loader in loaders.items()}
        what = f"SSD's loader, {images} images, 2 dataloader workers"
        pairs = [Pair('sb_mm', 'mmdet')]
        yield from in_turns(what, calls, pairs, settings, images=images)


def _voc(settings: Settings) -> dict:
    """Return the first images of VOC2007 with both pipelines."""
    import mmdet.datasets  # noqa: F401  fills the registry
    from mmdet.registry import DATASETS

    path = Path(settings.data_root, 'VOC2007/ImageSets/Main/trainval.txt')
    if not path.is_file():
        raise UserInputError(
            f'{path} does not exist: give the folder of VOCdevkit with '
            '--data-root, or choose other cases with --only.'
        )
    config = Config.fromfile(_CONFIGS / 'ssd_sb_voc.py')
    ours = config.train_dataloader.dataset.datasets[0]
    ours.update(data_root=settings.data_root, indices=_IMAGES)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return dict(
            mmdet=DATASETS.build(_with_stock_transforms(ours)),
            sb_mm=DATASETS.build(ours),
        )


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


def _all_of(dataset: 'torch.utils.data.Dataset') -> Callable[[], None]:  # noqa: F821
    def run() -> None:
        for i in range(len(dataset)):
            dataset[i]

    return run


def _epoch(
    loader: DataLoader, preprocess: Callable = lambda data, training: None
) -> Callable[[], None]:
    def run() -> None:
        for data in loader:
            preprocess(data, training=True)

    return run


@DATASETS.register_module()
class RandomCIFAR10(mmpretrain.datasets.CIFAR10):
    """mmpretrain's CIFAR10, with random images instead of its files.

    Args:
        images: How many.
        **kwargs: Those of ``CIFAR10``.
    """

    def __init__(self, images: int, **kwargs) -> None:
        self.images = images
        super().__init__(data_root='none', split='train', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return ``img`` ``(32, 32, 3)``, uint8, and ``gt_label`` of each."""
        rng = np.random.default_rng(0)
        shape = (self.images, 32, 32, 3)
        images = rng.integers(256, size=shape, dtype=np.uint8)
        return [dict(img=image, gt_label=0) for image in images]


def cifar_input(settings: Settings) -> Iterator[Row]:
    """Time CIFAR-10's input, from the images to the batch on the device.

    mmpretrain's has dataloader workers beside a GPU only: on a CPU they would
    take the cores from the training.
    """
    on_cpu = settings.device == 'cpu'
    workers = 0 if on_cpu else min(_MOST_WORKERS, os.cpu_count())
    images = 16 if settings.tiny else 6400 if on_cpu else 50_000
    calls = {
        name: _cifar_epoch(file, images, count, settings.device)
        for name, file, count in (
            ('mmpretrain', 'cifar10.py', workers),
            ('sb_mm', 'cifar10_on_device.py', 0),
        )
    }
    what = f"CIFAR-10's input, {images} images, {workers} dataloader workers"
    pairs = [Pair('sb_mm', 'mmpretrain', 1 if on_cpu else 0.1)]
    yield from in_turns(what, calls, pairs, settings, images=images)


def _cifar_epoch(
    file: str, images: int, workers: int, device: str
) -> Callable[[], None]:
    config = Config.fromfile(_CONFIGS / '_base_/datasets' / file)
    loader = config.train_dataloader
    loader.num_workers = workers
    loader.persistent_workers = loader.pin_memory = workers > 0
    own = loader.dataset.get('dataset', loader.dataset)  # of IndexedImages
    pipeline = own.pipeline
    own.clear()
    own.update(type='RandomCIFAR10', images=images, pipeline=pipeline)
    kind = dict(type='ClsDataPreprocessor') | config.data_preprocessor
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        preprocess = MODELS.build(kind).to(device)
        return _epoch(Runner.build_dataloader(loader, seed=0), preprocess)
