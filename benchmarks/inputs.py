"""What brings images to the networks: ours against the hosts'."""

import copy
import os
from collections.abc import Callable
from pathlib import Path

import mmpretrain.datasets
import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS

import sb_mm.datasets  # noqa: F401  fills the registry
from sb_mm.errors import UserInputError

from .measure import Pair, Rows, Settings, in_turns, one_thread

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
_IMAGES = 320  # of VOC2007, at most


def augmentation(settings: Settings) -> Rows:
    """Time SSD's training images, from the file to the packed tensor."""
    with one_thread():
        datasets = _voc(settings)
        n = len(datasets['sb_mm'])
        what = f"SSD's augmentation, {n} images, one thread"
        calls = {
            name: lambda dataset=dataset: [dataset[i] for i in range(n)]
            for name, dataset in datasets.items()
        }
        pairs = [Pair('sb_mm', 'mmdet', 0.333)]
        yield from in_turns(what, calls, pairs, settings, images=n)


def loading(settings: Settings) -> Rows:
    """Time the loader of SSD's training with two dataloader workers."""
    with one_thread():
        datasets = _voc(settings)
        n = len(datasets['sb_mm'])
        options = dict(
            batch_size=32,
            num_workers=2,
            persistent_workers=True,
            sampler=dict(type='DefaultSampler', shuffle=True),
        )
        calls = {
            name: _epoch(dict(options, dataset=dataset))
            for name, dataset in datasets.items()
        }
        what = f"SSD's loader, {n} images, 2 dataloader workers"
        pairs = [Pair('sb_mm', 'mmdet')]
        yield from in_turns(what, calls, pairs, settings, images=n)


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
    config = Config.fromfile(CONFIGS / 'ssd_sb_voc.py')
    ours = config.train_dataloader.dataset.datasets[0]
    ours.update(data_root=settings.data_root, indices=_IMAGES)
    hosts = copy.deepcopy(ours)
    before, names, augment, pack = hosts.pipeline
    hosts.pipeline = [
        before,
        names,
        dict(type='PhotoMetricDistortion', **augment.photometric),
        dict(type='Expand', **augment.expand),
        dict(type='MinIoURandomCrop', **augment.crop),
        dict(type='Resize', scale=augment.scale, keep_ratio=False),
        dict(type='RandomFlip', prob=augment.flip_prob),
        pack,
    ]
    with DefaultScope.overwrite_default_scope('mmdet'):
        return {
            name: DATASETS.build(config)
            for name, config in dict(mmdet=hosts, sb_mm=ours).items()
        }


def _epoch(
    loader: dict, preprocess: Callable = lambda data, training: None
) -> Callable[[], None]:
    built = Runner.build_dataloader(loader, seed=0)

    def run() -> None:
        for data in built:
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


def use_random_images(config: Config, images: int) -> ConfigDict:
    """Let a config for CIFAR-10 train on random images; return its loader."""
    loader = config.train_dataloader
    own = loader.dataset.get('dataset', loader.dataset)  # of IndexedImages
    pipeline = own.pipeline
    own.clear()
    own.update(type='RandomCIFAR10', images=images, pipeline=pipeline)
    return loader


def cifar_input(settings: Settings) -> Rows:
    """Time CIFAR-10's input, from the images to the batch on the device.

    mmpretrain's has dataloader workers beside a GPU only: on a CPU they would
    take the cores from the training.
    """
    on_cpu = settings.device == 'cpu'
    workers = 0 if on_cpu else min(16, os.cpu_count())
    images = 16 if settings.tiny else 6400 if on_cpu else 50_000
    calls = {}
    for name, file in (
        ('mmpretrain', 'cifar10.py'),
        ('sb_mm', 'cifar10_on_device.py'),
    ):
        config = Config.fromfile(CONFIGS / '_base_/datasets' / file)
        loader = use_random_images(config, images)
        if name == 'mmpretrain':
            loader.num_workers = workers
            loader.persistent_workers = loader.pin_memory = workers > 0
        kind = dict(type='ClsDataPreprocessor') | config.data_preprocessor
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            preprocess = MODELS.build(kind).to(settings.device)
            calls[name] = _epoch(loader, preprocess)
    what = f"CIFAR-10's input, {images} images, {workers} dataloader workers"
    pairs = [Pair('sb_mm', 'mmpretrain', 1 if on_cpu else 0.1)]
    yield from in_turns(what, calls, pairs, settings, images=images)
