"""Runs as tasks of a Ray cluster, with the runs' folder on shared storage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

from sb_mm.arguments import check_number
from sb_mm.errors import UserInputError, first_line
from sb_mm.paper.cells import REPOSITORY
from sb_mm.paper.records import Record

from .execute import RunFailedError, execute, python_path
from .local import Outcome
from .runs import Run

_POLL_SECONDS = 1.0
# How many nodes may die under a run: with preemptible ones, many do. It ends
# one day if it is the run that kills them.
_LOST_NODES = 100


@dataclass(frozen=True)
class Share:
    """What Ray reserves for a run.

    Attributes:
        cpus: Cores, also the threads of the training.
        gpus: GPUs; a fraction for runs that share one. None for one where
            the cluster has GPUs.
    """

    cpus: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        check_number('--cpus-per-run', self.cpus, 1, integer=True)
        if self.gpus is not None:
            check_number('--gpus-per-run', self.gpus, 0)


def run_on_ray(
    runs: Sequence[Run], address: str | None, share: Share, retries: int
) -> Iterator[tuple[Run, Outcome] | None]:
    """Do the runs as tasks of a Ray cluster.

    Every node needs this environment, and the data and the runs' folder at
    the same paths. A task whose node dies, up to 100 times, or whose training
    fails, is started again, and goes on from the newest checkpoint.

    Args:
        runs: To be done.
        address: Of the cluster: ``'auto'`` for the one of this machine,
            ``'local'`` for a new one on it.
        share: Of each run.
        retries: How often a run that failed is started again.

    Yields:
        Every run with its outcome, as they end, and None in between, once a
        second.

    Raises:
        UserInputError: If Ray is not installed, the cluster does not answer,
            or none of its nodes has the share.
    """
    ray = _connected(address)
    gpus = _place(ray, share, any(run.recipe.amp for run in runs))
    task = ray.remote(
        num_cpus=share.cpus,
        num_gpus=gpus,
        max_retries=_LOST_NODES,
        # A process of its own for each, with the GPU that it was given.
        max_calls=1,
    )(_task)
    left = dict.fromkeys(runs, retries)
    pending = {task.remote(run, share.cpus): run for run in runs}
    while pending:
        done, _ = ray.wait(list(pending), timeout=_POLL_SECONDS)
        for reference in done:
            run, outcome = pending.pop(reference), _outcome(ray, reference)
            if isinstance(outcome, RunFailedError) and left[run]:
                left[run] -= 1
                # Perhaps on another node.
                pending[task.remote(run, share.cpus)] = run
            else:
                yield run, outcome
        yield None


def _connected(address: str | None) -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise UserInputError(
            "--ray needs Ray: pip install -e '.[cluster]' in the folder "
            f'{REPOSITORY.name}.'
        ) from error
    try:
        ray.init(
            address,
            log_to_driver=False,
            ignore_reinit_error=True,
            runtime_env=dict(env_vars=dict(PYTHONPATH=python_path())),
        )
    except (ConnectionError, ValueError) as error:
        raise UserInputError(
            f'No Ray cluster answers at {address!r} ({first_line(error)}): '
            'start one with `ray start --head`, or give --ray local.'
        ) from error
    return ray


def _place(ray: ModuleType, share: Share, amp: bool) -> float:
    """Return the GPUs of a run, after a look whether nodes have its share."""
    nodes = [node['Resources'] for node in ray.nodes() if node['Alive']]
    gpus = share.gpus
    if gpus is None:
        gpus = float(any(has.get('GPU') for has in nodes))
    if amp and not gpus:
        raise UserInputError(
            '--amp needs a GPU for each run: leave it out, or set '
            '--gpus-per-run on a cluster with GPUs.'
        )
    for has in nodes:
        if has.get('CPU', 0) >= share.cpus and has.get('GPU', 0) >= gpus:
            return gpus
    raise UserInputError(
        f'No node of the Ray cluster has {share.cpus} cores and {gpus} GPUs '
        'for a run: set --cpus-per-run and --gpus-per-run to what the nodes '
        'have.'
    )


def _task(run: Run, threads: int) -> Record:
    return execute(run, dict(OMP_NUM_THREADS=str(threads)))


def _outcome(ray: ModuleType, reference: object) -> Outcome:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else error
    except ray.exceptions.RayError as error:
        return error
