"""One training a work directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sb_mm.errors import UserInputError

# The dataloader workers of a killed training need a moment to end.
_WAIT_SECONDS = 10


@contextmanager
def lock_work_dir(work_dir: str) -> Iterator[None]:
    """Keep other trainings out of the work directory.

    The lock ends with the process, however that ends.

    Args:
        work_dir: Work directory; made if it is not there.

    Raises:
        UserInputError: If another training goes on there.
    """
    folder = Path(work_dir)
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
