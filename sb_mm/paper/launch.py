"""Jobs side by side: on this machine, on a Ray cluster, as a Slurm array.

Here and on Ray, a job is a future, of the text that is to be said of it. On a
cluster, the folders of jobs and records are on storage that all nodes share.
"""

import os
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from threading import local

import torch
from rich.markup import escape
from rich.progress import Progress

from sb_mm.errors import UserInputError, explain
from sb_mm.files import cores

from .cells import Cell
from .job import Job, train_job
from .records import read_job

LOG = 'train.log'  # what a job printed, in its folder
_POLL = 1.0  # seconds


def plan_jobs(
    cells: Sequence[Cell], seeds: Sequence[int], **settings
) -> list[Job]:
    """Return a job for each distinct cell and seed, with the same settings."""
    distinct: dict[str, Cell] = {}
    for cell in cells:
        distinct.setdefault(cell.experiment, cell)
    # Seed by seed: work that is cut has something of everything.
    every = product(dict.fromkeys(seeds), distinct.values())
    return [Job(cell, seed, **settings) for seed, cell in every]


@contextmanager
def run_locally(
    commands: Mapping[Job, Sequence[str]], count: int | None = None
) -> Iterator[dict[Future[str], Job]]:
    """Train jobs in processes of this machine, which print into their logs.

    So many at a time, one for each GPU if None; they share the GPUs in turn,
    or the cores equally. At the context's end, what still runs is stopped.
    """
    places, place, running = _places(count), local(), []
    for job in commands:
        job.folder.mkdir(parents=True, exist_ok=True)

    def run(job: Job) -> str:
        with (job.folder / LOG).open('ab') as log:
            process = subprocess.Popen(
                commands[job],
                env={**os.environ, **vars(place)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            running.append(process)
            return _last_line(job, process.wait())

    with ThreadPoolExecutor(
        len(places), initializer=lambda: vars(place).update(places.pop(0))
    ) as pool:
        futures = {pool.submit(run, job): job for job in commands}
        try:
            yield futures
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            # A job that was just about to start is there a moment later.
            while not all(future.done() for future in futures):
                while running:
                    running.pop().terminate()
                time.sleep(0.1)


def _last_line(job: Job, code: int) -> str:
    """Return the last line that a job printed, or raise with it."""
    printed = (job.folder / LOG).read_text(errors='replace')
    text = printed.strip().rpartition('\n')[2]
    if code < 0 or not text:
        text = f'its process ended with code {code}'
    if code:
        raise ChildProcessError(text)
    return text


def _places(count: int | None) -> list[dict[str, str]]:
    gpus = torch.cuda.device_count()
    count = count or max(1, gpus)
    if not gpus:
        return [dict(OMP_NUM_THREADS=str(cores() // count or 1))] * count
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = given.split(',') if given else [str(i) for i in range(gpus)]
    return [dict(CUDA_VISIBLE_DEVICES=names[i % gpus]) for i in range(count)]


def follow(futures: Mapping[Future[str], Job]) -> list[Job]:
    """Show progress, tell how each job ends, and return the failed ones."""
    failed, waiting = [], set(futures)
    # Else it forgets the last epoch before the next one ends.
    with Progress(speed_estimate_period=1e6) as progress:
        bar = progress.add_task('all jobs', total=len(futures))
        while waiting:
            done, waiting = wait(waiting, _POLL, 'FIRST_COMPLETED')
            for future in done:
                job, error = futures[future], future.exception()
                if error:
                    failed.append(job)
                text = _failure(error, job) if error else future.result()
                line = escape(f'{job.name}: {text}')
                progress.console.print(line, soft_wrap=True)
            progress.update(bar, completed=sum(map(_done, futures.values())))
    return failed


def _failure(error: BaseException, job: Job) -> str:
    error = getattr(error, 'cause', error)  # of the job, or of Ray itself
    reason = str(error).partition('\n')[0] or repr(error)
    return f'{reason} (failed, see {job.folder})'


def _done(job: Job) -> float:
    """Return which part of a job's epochs is done."""
    with suppress(UserInputError):  # of a damaged file, as the job will say
        if (record := read_job(job.folder)) and record.history:
            return record.history[-1][0] / record.epochs
    return 0


@contextmanager
def run_on_ray(
    jobs: Iterable[Job],
    results: Path,
    address: str,
    cpus: int = 1,
    gpus: float | None = None,
) -> Iterator[dict[Future[str], Job]]:
    """Train jobs as tasks of a Ray cluster.

    Every node needs this environment. A task whose node dies is started again
    and goes on. ``cpus`` are also the threads of a job; ``gpus`` of None are
    one, if the cluster has any.
    """
    remedy = "pip install 'sb_mm[cluster]', `ray start --head` or --ray local"
    with explain(f'--ray {address} finds no Ray', remedy):
        import ray

        ray.init(address, log_to_driver=False, ignore_reinit_error=True)
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
    )(lambda job: str(train_job(job, results)))
    yield {task.remote(job).future(): job for job in jobs}


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
