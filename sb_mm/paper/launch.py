"""Jobs side by side: on this machine, on a Ray cluster, as a Slurm array.

On a cluster, the folder of the jobs and that of the records are on storage
that all nodes share.
"""

import os
import shlex
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from rich.markup import escape
from rich.progress import Progress

from sb_mm.errors import UserInputError, first_line
from sb_mm.files import cores

from .cells import Cell
from .job import Job, train_job
from .records import read_job

LOG = 'train.log'  # what a job printed, in its folder
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
    every = product(dict.fromkeys(seeds), distinct.values())
    return [Job(cell, seed, **settings) for seed, cell in every]


class Ended(NamedTuple):
    """How a job ended: with a record or not, and what is to be said of it."""

    job: Job
    recorded: bool
    text: str


def run_locally(
    commands: Mapping[Job, Sequence[str]], count: int | None = None
) -> Iterator[Ended | None]:
    """Train jobs in processes of this machine, which print into their logs.

    So many at a time, one for each GPU if None; they share the GPUs in turn,
    or the cores equally. Yield how jobs ended, and None once a second. Closed,
    stop what runs.
    """
    waiting, places = list(commands), _places(count)
    running: dict[Job, tuple[subprocess.Popen, dict[str, str]]] = {}
    try:
        while waiting or running:
            while waiting and places:
                job, place = waiting.pop(0), places.pop(0)
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
        return [dict(OMP_NUM_THREADS=str(cores() // count or 1))] * count
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = given.split(',') if given else [str(i) for i in range(gpus)]
    return [dict(CUDA_VISIBLE_DEVICES=names[i % gpus]) for i in range(count)]


def _start(
    job: Job, command: Sequence[str], place: dict[str, str]
) -> subprocess.Popen:
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / LOG).open('ab') as log:
        environment = {**os.environ, **place}
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def _ended(job: Job, code: int) -> Ended:
    """Return the last line that a job printed, if it ended by itself."""
    printed = (job.folder / LOG).read_text(errors='replace')
    text = printed.strip().rpartition('\n')[2]
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
    with suppress(UserInputError):
        if record := read_job(job.folder):
            done = record.history[-1][0] if record.history else 0
            return dict(total=record.epochs, completed=done, visible=True)
    return {}


def run_on_ray(
    jobs: Sequence[Job],
    results: Path,
    address: str,
    cpus: int = 1,
    gpus: float | None = None,
) -> Iterator[Ended | None]:
    """Train jobs as tasks of a Ray cluster; yield as :func:`run_locally`.

    Every node needs this environment. A task whose node dies is started again
    and goes on from the newest checkpoint. ``cpus`` are also the threads of a
    job; ``gpus`` of None are one, if the cluster has any.
    """
    try:
        import ray

        ray.init(address, log_to_driver=False, ignore_reinit_error=True)
    except (ImportError, ConnectionError, ValueError) as error:
        raise UserInputError(
            f'--ray {address} finds no Ray ({first_line(error)}): pip install '
            "'sb_mm[cluster]', and start a cluster with `ray start --head`, "
            'or give --ray local.'
        ) from error
    if gpus is None:
        gpus = float('GPU' in ray.cluster_resources())
    task = ray.remote(
        num_cpus=cpus,
        num_gpus=gpus,
        # Preemptible nodes die often; a job that kills its node, to the end.
        max_retries=100,
        # A process of its own for each, with the GPU that it was given.
        max_calls=1,
        runtime_env=dict(env_vars=dict(OMP_NUM_THREADS=str(cpus))),
    )(train_job)
    pending = {task.remote(job, results): job for job in jobs}
    while pending:
        done, _ = ray.wait(list(pending), timeout=_POLL_SECONDS)
        for reference in done:
            job = pending.pop(reference)
            try:
                yield Ended(job, True, str(ray.get(reference)))
            except ray.exceptions.RayError as error:
                # Of the job, or of Ray itself.
                reason = getattr(error, 'cause', error)
                yield Ended(job, False, first_line(reason))
        yield None


def slurm_array(
    arguments: Sequence[str], jobs: int, cpus: int, gpus: float | None
) -> str:
    """Return the shell command that submits the jobs as a Slurm array.

    Any number of ``gpus`` but 0 is one, as Slurm does not share them.
    """
    given = [word for word in arguments if word != '--slurm']
    task = shlex.join(['python', 'tools/paper.py', *given])
    words = ['sbatch', f'--array=0-{jobs - 1}', f'--cpus-per-task={cpus}']
    words += [] if gpus == 0 else ['--gres=gpu:1']
    words += ['--requeue', f'--wrap={task} --only $SLURM_ARRAY_TASK_ID']
    return shlex.join(words)
