"""One training a work directory."""

from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from sb_mm.errors import UserInputError

# The dataloader workers of a killed training need a moment to end.
_WAIT_SECONDS = 10


def lock_work_dir(work_dir: str) -> AcquireReturnProxy:
    """Keep other trainings out of the work directory, as a context.

    The lock ends with the process, however that ends.

    Args:
        work_dir: Work directory; made if it is not there.

    Raises:
        UserInputError: If another training goes on there.
    """
    folder = Path(work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / '.lock').acquire(timeout=_WAIT_SECONDS)
    except Timeout as error:
        raise UserInputError(
            f'Another training goes on in {folder}: wait for it, stop it, or '
            'give another --work-dir.'
        ) from error
