"""Runs side by side on one machine, sharing its GPUs."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ThreadPoolExecutor,
    wait,
)
from queue import SimpleQueue

import torch

from sb_mm.paper.records import Record

from .execute import Processes, RunFailedError, execute
from .runs import Run

# How a run ended: with a record, or with the reason why there is none.
Outcome = Record | Exception
_POLL_SECONDS = 1.0


def default_jobs() -> int:
    """Return one process a GPU, or one if there is none."""
    return max(1, torch.cuda.device_count())


def run_locally(
    runs: Sequence[Run], jobs: int, retries: int
) -> Iterator[tuple[Run, Outcome] | None]:
    """Do the runs, ``jobs`` at a time.

    Each process gets one GPU, which several may share, or its part of the
    CPU's cores.

    Args:
        runs: To be done.
        jobs: Processes at a time.
        retries: How often a run that failed is started again.

    Yields:
        Every run with its outcome, as they end, and None in between, once a
        second. What still runs is stopped when the iterator is closed.
    """
    places: SimpleQueue = SimpleQueue()
    for environment in _places(jobs):
        places.put(environment)
    processes = Processes()

    def do(run: Run) -> Record:
        environment = places.get()
        try:
            return _persist(run, environment, processes, retries)
        finally:
            places.put(environment)

    with ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(do, run): run for run in runs}
        try:
            yield from _finished(pending)
        finally:
            for future in pending:
                future.cancel()
            processes.stop()


def _persist(
    run: Run, environment: dict, processes: Processes, retries: int
) -> Record:
    for _ in range(retries):
        try:
            return execute(run, environment, processes)
        except RunFailedError:
            time.sleep(_POLL_SECONDS)
    return execute(run, environment, processes)


def _finished(
    pending: dict[Future, Run],
) -> Iterator[tuple[Run, Outcome] | None]:
    left = set(pending)
    while left:
        done, left = wait(left, _POLL_SECONDS, FIRST_COMPLETED)
        for future in done:
            yield pending[future], future.exception() or future.result()
        yield None


def _places(jobs: int) -> list[dict[str, str]]:
    """Return the environment variables of the processes."""
    gpus = _visible_gpus()
    if gpus:
        return [
            dict(CUDA_VISIBLE_DEVICES=gpus[job % len(gpus)])
            for job in range(jobs)
        ]
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    return [dict(OMP_NUM_THREADS=str(threads))] * jobs


def _visible_gpus() -> list[str]:
    """Return the names of the GPUs as the user's environment has them."""
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    count = torch.cuda.device_count()
    return (
        given.split(',')[:count] if given else [str(i) for i in range(count)]
    )
