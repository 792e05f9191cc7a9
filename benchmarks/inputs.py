"""What brings images to the networks: ours against the hosts'."""

import copy
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mmdet.datasets  # noqa: F401  fills the registry
import mmpretrain.datasets
import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner

from sb_mm.engine.build import build_model, scope_of
from sb_mm.registry import DATASETS

from .measure import Pair, Rows, Settings, in_turns

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
CIFAR = CONFIGS / 'cifar10/mobilenetv2-sb-w0.35_1xb128-200e_cifar10.py'


def augmentation(settings: Settings) -> Rows:
    """Time SSD's training images, alone and through dataloader workers."""
    datasets = _voc(settings)
    n = len(datasets['sb_mm'])
    alone, loaded = {}, {}
    for name, dataset in datasets.items():
        alone[name] = lambda data=dataset: [data[i] for i in range(n)]
        loader = dict(batch_size=32, num_workers=2, persistent_workers=True)
        loader['sampler'] = dict(type='DefaultSampler', shuffle=True)
        loaded[name] = epoch(dict(loader, dataset=dataset), len)
    pairs = [Pair('sb_mm', 'mmdet', 0.333)]
    what = f"SSD's augmentation, {n} images, one thread"
    yield from in_turns(what, alone, pairs, settings, images=n)
    pairs = [Pair('sb_mm', 'mmdet')]
    what = f"SSD's loader, {n} images, 2 dataloader workers"
    yield from in_turns(what, loaded, pairs, settings, images=n)


def _voc(settings: Settings) -> dict:
    """Return the first images of VOC2007 with both pipelines."""
    config = Config.fromfile(CONFIGS / 'ssd_sb_voc.py')
    ours = config.train_dataloader.dataset.datasets[0]
    ours.update(data_root=settings.data_root, indices=320)
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
    with scope_of(config):
        return dict(mmdet=DATASETS.build(hosts), sb_mm=DATASETS.build(ours))


def epoch(loader: dict, use: Callable[[dict], object]) -> Callable[[], deque]:
    """Return what goes through a loader once."""
    built = Runner.build_dataloader(loader, seed=0)
    return lambda: deque(map(use, built), maxlen=0)


@DATASETS.register_module()
class RandomCIFAR10(mmpretrain.datasets.CIFAR10):
    """mmpretrain's CIFAR10, with ``indices`` random images, not its files."""

    def load_data_list(self) -> list[dict]:
        """Return ``img`` ``(32, 32, 3)``, uint8, and ``gt_label`` of each."""
        rng, shape = np.random.default_rng(0), (self._indices, 32, 32, 3)
        images = rng.integers(256, size=shape, dtype=np.uint8)
        return [dict(img=image, gt_label=0) for image in images]


def cifar_config(images: int, path: Path = CIFAR) -> Config:
    """Return a config for CIFAR-10 that trains on random images."""
    config = Config.fromfile(path)
    dataset = config.train_dataloader.dataset
    dataset = dataset.get('dataset', dataset)  # of IndexedImages
    dataset.update(type='sb_mm.RandomCIFAR10', indices=images)
    return config


def cifar_input(settings: Settings) -> Rows:
    """Time CIFAR-10's input, from the images to the batch on the device."""
    # On a CPU they would take the cores from the training.
    workers = min(16, os.cpu_count()) if settings.on_gpu else 0
    images = 16 if settings.tiny else 50_000 if settings.on_gpu else 6400
    host = Path(mmpretrain.__path__[0], '.mim/configs/resnet')
    hosts = cifar_config(images, host / 'resnet18_8xb16_cifar10.py')
    hosts.train_dataloader.update(
        batch_size=128,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=workers > 0,
        collate_fn=dict(type='default_collate'),
    )
    configs, calls = dict(mmpretrain=hosts, sb_mm=cifar_config(images)), {}
    for name, config in configs.items():
        preprocess = build_model(config).data_preprocessor.to(settings.device)
        with scope_of(config):
            calls[name] = epoch(
                config.train_dataloader, partial(preprocess, training=True)
            )
    what = f"CIFAR-10's input, {images} images, {workers} dataloader workers"
    pairs = [Pair('sb_mm', 'mmpretrain', 0.1 if settings.on_gpu else 1)]
    return in_turns(what, calls, pairs, settings, images=images)
