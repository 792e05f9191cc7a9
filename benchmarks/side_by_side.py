"""Trainings of CIFAR-10's size side by side, as several seeds are trained."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from . import cifar_pipeline
from .measurement import Measurement, Settings, rates_in_turns

MOST = 3
# The training of this process, which has one only.
_epoch: list[Callable[[], object]] = []


def name(processes: int) -> str:
    """Return the name of a contender."""
    return '1 training' if processes == 1 else f'{processes} trainings'


def side_by_side(settings: Settings) -> Iterator[Measurement]:
    """Count the images/s of all trainings that run at a time.

    Each is a process, as ``tools/paper.py train --jobs`` starts them; on a CPU
    they share its cores, on a GPU they share that.
    """
    device = torch.device(settings.device).type
    if device == 'cpu' and torch.cuda.is_available():
        settings.notes.append(
            'trainings side by side on the CPU: MMEngine trains on the GPU of '
            'this machine: not run'
        )
        return
    tiny = settings.tiny
    batch = 4 if tiny else cifar_pipeline.BATCH
    images = 2 * batch if tiny else cifar_pipeline.images_of_steps(device)
    mode = 'reduce-overhead' if device == 'cuda' else None
    case = dict(
        width=cifar_pipeline.WIDTH,
        batch=batch,
        images=images,
        device=device,
        cores=len(os.sched_getaffinity(0)),
        compiled=mode is not None,
    )
    way = cifar_pipeline.Way(channels_last=True, compile=mode)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trainings = [
            stack.enter_context(_training(way, images, batch, folder / str(i)))
            for i in range(MOST)
        ]
        counts = range(1, MOST + 1)
        yield from rates_in_turns(
            case,
            {name(n): partial(_train, trainings[:n]) for n in counts},
            settings.rounds,
            {name(n): n * images for n in counts},
        )


def _training(
    way: cifar_pipeline.Way, images: int, batch: int, folder: Path
) -> ProcessPoolExecutor:
    """Return a process that is ready to train."""
    return ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context('spawn'),
        initializer=_begin,
        initargs=(way, images, batch, folder),
    )


def _begin(
    way: cifar_pipeline.Way, images: int, batch: int, folder: Path
) -> None:
    cfg = cifar_pipeline.config(way, images, batch, folder)
    _epoch.append(cifar_pipeline.prepared_epoch(cfg))


def _train(trainings: list[ProcessPoolExecutor]) -> None:
    """Let all train for an epoch, and wait for the last."""
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // len(trainings))
    for future in [pool.submit(_run, threads) for pool in trainings]:
        future.result()


def _run(threads: int) -> None:
    torch.set_num_threads(threads)
    _epoch[0]()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
