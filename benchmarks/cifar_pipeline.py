"""Training on CIFAR-10's size: pictures on the device, or mmpretrain's way."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import mmpretrain.datasets
import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS
from torch import nn
from torch.utils.data import DataLoader

import sb_mm.datasets.indexed_pictures  # noqa: F401  fills the registry
import sb_mm.models  # noqa: F401  fills the registry
from sb_mm.engine.on_device import use_device_data

from .measurement import Measurement, Settings, rates_in_turns

OURS, STOCK = 'sb_mm', 'mmpretrain'
LAST = 'sb_mm, channels_last'
COMPILED = 'sb_mm, compiled (reduce-overhead)'
BOTH = 'sb_mm, channels_last, compiled (reduce-overhead)'
PIPELINE, STEP = 'input pipeline', 'training step'
BATCH, WIDTH = 128, 0.35
_SIDE, _CLASSES = 32, 10
_MOST_WORKERS = 16


@DATASETS.register_module()
class RandomCIFAR10(mmpretrain.datasets.CIFAR10):
    """mmpretrain's CIFAR10, with random pictures instead of its files.

    Args:
        pictures: How many.
        kwargs: Those of ``CIFAR10``.
    """

    def __init__(self, pictures: int, **kwargs) -> None:
        self.pictures = pictures
        super().__init__(data_root='none', split='train', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return ``img`` ``(32, 32, 3)``, uint8, and ``gt_label`` of each."""
        rng = np.random.default_rng(0)
        shape = (self.pictures, _SIDE, _SIDE, 3)
        images = rng.integers(256, size=shape, dtype=np.uint8)
        labels = rng.integers(_CLASSES, size=self.pictures).tolist()
        return [
            dict(img=image, gt_label=label)
            for image, label in zip(images, labels, strict=True)
        ]


@dataclass(frozen=True)
class Way:
    """How a contender brings pictures to the network and computes.

    Attributes:
        on_device: With ``sb_mm``'s input instead of mmpretrain's.
        workers: Processes that load.
        channels_last: Memory format of the batches.
        compile: Mode of ``torch.compile`` for the training step; None for
            none.
    """

    on_device: bool = True
    workers: int = 0
    channels_last: bool = False
    compile: str | None = None


def ways(what: str, device: str) -> dict[str, Way]:
    """Return the contenders by name.

    Args:
        what: ``PIPELINE`` or ``STEP``.
        device: ``'cpu'`` or ``'cuda'``.
    """
    if device == 'cuda':
        stock = Way(False, workers=min(_MOST_WORKERS, os.cpu_count() or 1))
        mode = 'default'
    else:
        # On few cores, processes would take them from the training.
        stock, mode = Way(False), None
    found = {STOCK: replace(stock, compile=mode), OURS: Way(compile=mode)}
    if what == STEP:
        found |= {
            LAST: Way(channels_last=True, compile=mode),
            COMPILED: Way(compile='reduce-overhead'),
            BOTH: Way(channels_last=True, compile='reduce-overhead'),
        }
    return found


def cifar_pipeline(settings: Settings) -> Iterator[Measurement]:
    """Count pictures/s of the input alone, and of whole training steps.

    The pictures are random, of CIFAR-10's size. On a GPU, the networks of
    all contenders are compiled, as ``compile=True`` in a config does, and
    mmpretrain's input has processes that load.
    """
    device = torch.device(settings.device).type
    batch = 4 if settings.tiny else BATCH
    for what, prepare, batches in (
        (PIPELINE, _inputs, 50),
        # A step takes a CPU 50 times as long as its input.
        (STEP, _steps, 50 if device == 'cuda' else 4),
    ):
        pictures = batch * (2 if settings.tiny else batches)
        case = dict(what=what, batch=batch, pictures=pictures, device=device)
        found = ways(what, device)
        if what == STEP:
            case.update(width=WIDTH, compiled=device == 'cuda')
        if device == 'cuda':
            case.update(workers=found[STOCK].workers)
        contenders = {
            name: prepare(config(way, pictures, batch), settings.device)
            for name, way in found.items()
        }
        yield from rates_in_turns(case, contenders, settings.rounds, pictures)


def config(way: Way, pictures: int, batch: int) -> Config:
    """Return model and loader of SB x0.35."""
    model = dict(
        type='ImageClassifier',
        backbone=dict(
            type='sb_mm.AttentionMobileNetV2CIFAR',
            widen_factor=WIDTH,
            attention=dict(type='sb_mm.ShiftBalance'),
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead', num_classes=_CLASSES, in_channels=1280
        ),
        data_preprocessor=_PREPROCESSOR,
    )
    loader = dict(
        batch_size=batch,
        num_workers=way.workers,
        persistent_workers=way.workers > 0,
        pin_memory=way.workers > 0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='RandomCIFAR10', pictures=pictures, pipeline=_TRANSFORMS
        ),
    )
    cfg = Config(
        dict(model=model, train_dataloader=loader, compile=way.compile)
    )
    if way.on_device:
        use_device_data(cfg, way.channels_last)
    return cfg


# As in mmpretrain's configs of CIFAR-10.
_PREPROCESSOR = dict(
    type='ClsDataPreprocessor',
    num_classes=_CLASSES,
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255],
    to_rgb=False,
)
_TRANSFORMS = [
    dict(type='RandomCrop', crop_size=_SIDE, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]


def build_loader(cfg: Config) -> DataLoader:
    """Return the loader of a config of :func:`config`."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return Runner.build_dataloader(cfg.train_dataloader, seed=0)


def _inputs(cfg: Config, device: str) -> Callable[[], None]:
    """Return what loads an epoch up to what the network takes."""
    loader = build_loader(cfg)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        preprocess = MODELS.build(cfg.model.data_preprocessor).to(device)

    def run() -> None:
        for data in loader:
            preprocess(data, training=True)

    return run


def _steps(cfg: Config, device: str) -> Callable[[], None]:
    """Return what trains for an epoch."""
    loader, model = build_loader(cfg), _build(cfg).to(device)
    # The rate of 0 keeps the weights, so that every step is the same work.
    optimizer = torch.optim.SGD(model.parameters(), lr=0, momentum=0.9)
    wrapper = OptimWrapper(optimizer)
    if cfg.compile:
        # As MMEngine's runner does it.
        model.forward = torch.compile(model.forward, mode=cfg.compile)

    def run() -> None:
        for data in loader:
            model.train_step(data, wrapper)

    return run


def _build(cfg: Config) -> nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg.model).train()
