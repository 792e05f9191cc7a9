"""One training a work directory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from mmengine.config import Config

from sb_mm.errors import UserInputError

# What the launchers call the number of a process.
_RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
# The dataloader workers of a killed training need a moment to end.
_WAIT_SECONDS = 10


@contextmanager
def lock_work_dir(cfg: Config) -> Iterator[None]:
    """Keep other trainings out of the work directory.

    The lock ends with the process, however it ends. Of several processes of
    a training, the first holds it.

    Args:
        cfg: Config of the training.

    Raises:
        UserInputError: If another training goes on there.
    """
    if not is_main_process(cfg):
        yield
        return
    folder = Path(cfg.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / '.lock')
    try:
        held = lock.acquire(timeout=_WAIT_SECONDS)
    except Timeout as error:
        raise UserInputError(
            f'Another training goes on in {folder}: wait for it, stop it, or '
            'give another --work-dir.'
        ) from error
    with held:
        yield


def is_main_process(cfg: Config) -> bool:
    """Whether this is the first process; none has joined the others yet."""
    variable = _RANKS.get(cfg.get('launcher') or 'none', '')
    return os.environ.get(variable, '0') == '0'
