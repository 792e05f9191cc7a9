"""Jobs side by side: on this machine's cores or GPUs, with bars."""

import os
import subprocess
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from rich.markup import escape
from rich.progress import Progress

from sb_mm.errors import UserInputError
from sb_mm.files import cores

from .cells import Cell
from .job import Job
from .job_hook import read_job

_POLL_SECONDS = 1.0


def plan_jobs(
    cells: Sequence[Cell], seeds: Sequence[int], **settings
) -> list[Job]:
    """Return a job for each distinct cell and seed, with the same settings.

    The first seed of every cell comes first, so that work that is cut has
    something of everything.
    """
    distinct: dict[str, Cell] = {}
    for cell in cells:
        distinct.setdefault(cell.experiment, cell)
    return [
        Job(cell, seed, **settings)
        for seed in dict.fromkeys(seeds)
        for cell in distinct.values()
    ]


class Ended(NamedTuple):
    """How a job ended: with a record or not, and what is to be said of it."""

    job: Job
    recorded: bool
    text: str


def run_locally(
    commands: Mapping[Job, Sequence[str]], count: int | None = None
) -> Iterator[Ended | None]:
    """Train jobs in processes of this machine, which print into their logs.

    Args:
        commands: What trains each job.
        count: Processes at a time, one for each GPU if None. They share the
            GPUs in turn, or the cores equally.

    Yields:
        How jobs ended, and None once a second. Closed, it stops what runs.
    """
    waiting, places = deque(commands), _places(count)
    running: dict[Job, tuple[subprocess.Popen, dict[str, str]]] = {}
    try:
        while waiting or running:
            while waiting and places:
                job, place = waiting.popleft(), places.pop(0)
                running[job] = _start(job, commands[job], place), place
            time.sleep(_POLL_SECONDS)
            for job, (process, place) in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    places.append(place)
                    yield _ended(job, process.returncode)
            yield None
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()


def _places(count: int | None) -> list[dict[str, str]]:
    gpus = torch.cuda.device_count()
    count = count or max(1, gpus)
    if not gpus:
        threads = max(1, cores() // count)
        return [dict(OMP_NUM_THREADS=str(threads)) for _ in range(count)]
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = given.split(',') if given else [str(i) for i in range(gpus)]
    return [dict(CUDA_VISIBLE_DEVICES=names[i % gpus]) for i in range(count)]


def _start(
    job: Job, command: Sequence[str], place: dict[str, str]
) -> subprocess.Popen:
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.log.open('ab') as log:
        environment = {**os.environ, **place}
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def _ended(job: Job, code: int) -> Ended:
    """Return the last line that a job printed, if it ended by itself."""
    lines = job.log.read_text(errors='replace').split('\n')
    text = next((x for x in reversed(lines) if x.strip()), '')
    if code < 0 or not text:
        text = f'its process ended with code {code}'
    return Ended(job, code == 0, text)


def follow(jobs: Collection[Job], events: Iterable[Ended | None]) -> list[Job]:
    """Show jobs as bars, print a line for each that ends, return the failed.

    The events are those of :func:`run_locally`.
    """
    failed = []
    # Else it forgets the last epoch before the next one ends.
    with Progress(speed_estimate_period=1e6) as progress:
        total = progress.add_task('all jobs', total=len(jobs))
        bars = {j: progress.add_task(j.name, visible=False) for j in jobs}
        for ended in events:
            if ended is None:
                for job, bar in bars.items():
                    progress.update(bar, **_so_far(job))
                continue
            line = f'{ended.job.name}: {ended.text}'
            if not ended.recorded:
                failed.append(ended.job)
                line += f' (failed, see {ended.job.folder})'
            progress.console.print(escape(line), soft_wrap=True)
            progress.remove_task(bars.pop(ended.job))
            progress.advance(total)
    return failed


def _so_far(job: Job) -> dict:
    """Return what a job's bar shows, once its training has begun."""
    # That the file is damaged will its own process say.
    with suppress(UserInputError, KeyError):
        launched = read_job(job.folder)
        done = len(launched['seconds'])
        return dict(total=launched['epochs'], completed=done, visible=True)
    return {}
