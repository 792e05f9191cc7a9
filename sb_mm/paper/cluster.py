"""Jobs on a cluster: as tasks of Ray, or as a job array of Slurm.

The folder of the jobs and that of the records are on storage that all nodes
share.
"""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from sb_mm.errors import UserInputError, first_line

from .job import Job, train_job
from .train import Ended

_POLL_SECONDS = 1.0
# How many nodes may die under a job: with preemptible ones, many do. It ends
# one day if it is the job that kills them.
_LOST_NODES = 100


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


def run_on_ray(
    jobs: Sequence[Job],
    results: Path,
    address: str | None,
    cpus: int = 1,
    gpus: float | None = None,
) -> Iterator[Ended | None]:
    """Train jobs as tasks of a Ray cluster.

    Every node needs this environment. A task whose node dies is started again
    and goes on from the newest checkpoint.

    Args:
        jobs: To be trained.
        results: Folder of the records.
        address: ``'auto'`` for the cluster of this machine, ``'local'`` for a
            new one on it.
        cpus: Cores of a job, also the threads of its training.
        gpus: Of a job; None for one where the cluster has any.

    Yields:
        As :func:`~sb_mm.paper.train.run_locally`.

    Raises:
        UserInputError: If Ray is not installed or does not answer.
    """
    ray = _connected(address)
    if gpus is None:
        gpus = float('GPU' in ray.cluster_resources())
    task = ray.remote(
        num_cpus=cpus,
        num_gpus=gpus,
        max_retries=_LOST_NODES,
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


def _connected(address: str | None) -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise UserInputError(
            "--ray needs Ray: pip install 'sb_mm[cluster]'."
        ) from error
    try:
        ray.init(address, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, ValueError) as error:
        raise UserInputError(
            f'No Ray cluster answers at {address!r} ({first_line(error)}): '
            'start one with `ray start --head`, or give --ray local.'
        ) from error
    return ray
