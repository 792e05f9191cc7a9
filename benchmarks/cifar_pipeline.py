"""Training on CIFAR-10's size: images on the device, or mmpretrain's way."""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mmpretrain.datasets
import numpy as np
import torch
import torch._dynamo
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmpretrain.registry import DATASETS, LOOPS
from torch import nn
from torch.utils.data import DataLoader

from sb_mm.engine.build import build_model
from sb_mm.paper.cells import find_cell
from sb_mm.paper.job import Execution, Job

from .measurement import Measurement, Settings, rates_in_turns

OURS, STOCK = 'sb_mm', 'mmpretrain'
LAST = 'sb_mm, channels_last'
COMPILED = 'sb_mm, compiled (reduce-overhead)'
BOTH = 'sb_mm, channels_last, compiled (reduce-overhead)'
HALF = f'{BOTH}, bfloat16'
PIPELINE, STEP = 'input pipeline', 'training step'
CELL, BATCH, WIDTH = 't6-x0.35-sb', 128, 0.35
_SIDE, _CLASSES = 32, 10
_EPOCHS = 10**6  # more than are ever run
_MOST_WORKERS = 16
# All contenders' networks are of the same code, of which a compiler gives up
# after a number of versions, and would let the last one run slowly unnoticed.
_COMPILERS_PATIENCE = torch._dynamo.config.patch(
    recompile_limit=64, fail_on_recompile_limit_hit=True
)


@DATASETS.register_module()
class RandomCIFAR10(mmpretrain.datasets.CIFAR10):
    """mmpretrain's CIFAR10, with random images instead of its files.

    Args:
        images: How many.
        kwargs: Those of ``CIFAR10``.
    """

    def __init__(self, images: int, **kwargs) -> None:
        self.images = images
        super().__init__(data_root='none', split='train', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return ``img`` ``(32, 32, 3)``, uint8, and ``gt_label`` of each."""
        rng = np.random.default_rng(0)
        shape = (self.images, _SIDE, _SIDE, 3)
        images = rng.integers(256, size=shape, dtype=np.uint8)
        labels = rng.integers(_CLASSES, size=self.images).tolist()
        return [
            dict(img=image, gt_label=label)
            for image, label in zip(images, labels, strict=True)
        ]


@LOOPS.register_module()
class LoopOfCaller(EpochBasedTrainLoop):
    """MMEngine's loop, the epochs of which are run by who measures them."""

    def run(self) -> nn.Module:
        """Do what comes before the first epoch."""
        self.runner.call_hook('before_train')
        return self.runner.model


@dataclass(frozen=True)
class Way:
    """How a contender brings images to the network and computes.

    Attributes:
        on_device: With ``sb_mm``'s input instead of mmpretrain's.
        workers: Dataloader workers.
        channels_last: Memory format of the batches.
        compile: Mode of ``torch.compile``; None for none.
        amp: With bfloat16.
    """

    on_device: bool = True
    workers: int = 0
    channels_last: bool = False
    compile: str | None = None
    amp: bool = False


def ways(what: str, device: str, tiny: bool = False) -> dict[str, Way]:
    """Return the contenders by name.

    Args:
        what: ``PIPELINE`` or ``STEP``.
        device: ``'cpu'`` or ``'cuda'``.
        tiny: Leave out what a CPU would compile for minutes.
    """
    if device == 'cuda':
        stock = Way(False, workers=min(_MOST_WORKERS, os.cpu_count() or 1))
        mode = 'default'
    else:
        # On few cores, processes would take them from the training.
        stock, mode = Way(False), None
    found = {STOCK: replace(stock, compile=mode), OURS: Way(compile=mode)}
    if what == STEP:
        found[LAST] = Way(channels_last=True, compile=mode)
    if what == STEP and not tiny:
        found[COMPILED] = Way(compile='reduce-overhead')
        found[BOTH] = Way(channels_last=True, compile='reduce-overhead')
    if what == STEP and device == 'cuda':
        found[HALF] = replace(found[BOTH], amp=True)
    return found


def cifar_pipeline(settings: Settings) -> Iterator[Measurement]:
    """Count images/s of the input alone, and of whole epochs of training.

    As ``tools/paper.py train`` does, by MMEngine's runner with its hooks; the
    images are random, of CIFAR-10's size and, on a GPU, its number. There,
    the networks of all contenders are compiled, and mmpretrain's input has
    dataloader workers.
    """
    device = torch.device(settings.device).type
    batch = 4 if settings.tiny else BATCH
    for what in (PIPELINE, STEP):
        if what == STEP and device == 'cpu' and torch.cuda.is_available():
            settings.notes.append(
                "CIFAR-10's training step on the CPU: MMEngine trains on the "
                'GPU of this machine: not run'
            )
            return
        images = 2 * batch if settings.tiny else _images(what, device)
        case = dict(what=what, batch=batch, images=images, device=device)
        found = ways(what, device, settings.tiny)
        if what == STEP:
            case.update(width=WIDTH, compiled=device == 'cuda')
        if device == 'cuda':
            case.update(workers=found[STOCK].workers)
        with tempfile.TemporaryDirectory() as folder, _COMPILERS_PATIENCE:
            contenders = {
                name: _prepared(
                    what,
                    config(way, images, batch, Path(folder, name)),
                    settings.device,
                )
                for name, way in found.items()
            }
            yield from rates_in_turns(
                case, contenders, settings.rounds, images
            )


def _images(what: str, device: str) -> int:
    if what == STEP or device == 'cuda':
        return images_of_steps(device)
    # A step takes a CPU 50 times as long as its input.
    return BATCH * 50


def images_of_steps(device: str) -> int:
    """Return how many images an epoch of training has."""
    return 50_000 if device == 'cuda' else BATCH * 4


def config(way: Way, images: int, batch: int, work_dir: Path) -> Config:
    """Return what ``tools/paper.py`` would train, with random images."""
    options = {
        'train_cfg.max_epochs': _EPOCHS,
        # The rate of 0 keeps the weights: every epoch is the same work.
        'optim_wrapper.optimizer.lr': 0.0,
    }
    if way.amp:
        options['optim_wrapper.type'] = 'AmpOptimWrapper'
        options['optim_wrapper.dtype'] = 'bfloat16'
    execution = Execution(
        on_device=way.on_device,
        channels_last=way.channels_last,
        compile=way.compile,
    )
    cfg = Job(find_cell(CELL), 0, options, execution).config()
    cfg.work_dir = str(work_dir)
    # Nothing is validated, and no record is made.
    cfg.custom_hooks = [
        hook for hook in cfg.custom_hooks if hook['type'] != 'sb_mm.JobHook'
    ]
    loader = cfg.train_dataloader
    loader.batch_size = batch
    loader.num_workers = way.workers
    loader.persistent_workers = loader.pin_memory = way.workers > 0
    dataset = loader.dataset.dataset if way.on_device else loader.dataset
    dataset.type = 'RandomCIFAR10'
    dataset.images = images
    for name in ('data_root', 'split'):
        dataset.pop(name)
    for name in ('dataloader', 'cfg', 'evaluator'):
        cfg[f'val_{name}'] = cfg[f'test_{name}'] = None
    if not way.on_device:
        # As mmpretrain's tool would train.
        cfg.default_hooks.runtime_info = dict(type='RuntimeInfoHook')
        cfg.optim_wrapper.optimizer.pop('fused')
    cfg.train_cfg.type = 'LoopOfCaller'
    cfg.default_hooks.checkpoint = None
    # Runners of one process share what has the same name.
    cfg.experiment_name = work_dir.as_posix().replace('/', '_')
    cfg.visualizer.name = cfg.experiment_name
    cfg.log_level = 'ERROR'
    return cfg


def _prepared(what: str, cfg: Config, device: str) -> Callable[[], None]:
    """Return what loads, or trains for, an epoch."""
    if what == STEP:
        return prepared_epoch(cfg)
    loader = build_loader(cfg)
    preprocess = build_model(cfg).to(device).data_preprocessor

    def run() -> None:
        for data in loader:
            preprocess(data, training=True)

    return run


def prepared_epoch(cfg: Config) -> Callable[[], None]:
    """Return what trains a config of :func:`config` for an epoch."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner.train_loop.run_epoch


def build_loader(cfg: Config) -> DataLoader:
    """Return the loader of a config of :func:`config`."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return Runner.build_dataloader(cfg.train_dataloader, seed=0)
