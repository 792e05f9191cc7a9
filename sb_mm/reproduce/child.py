"""The process of one training.

``python -m sb_mm.reproduce.child FOLDER PARENT``, with the number of the
process that starts it. Exit codes: 0 after the training, 2 for unusable input,
3 if another process trains in the folder, 4 for a training that diverged, 5 if
another process trained in the folder and has ended meanwhile.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from sb_mm.engine.config import load_config
from sb_mm.engine.hooks.divergence import DivergedError
from sb_mm.engine.runner import train
from sb_mm.errors import UserInputError

UNUSABLE, BUSY, DIVERGED, WAITED = 2, 3, 4, 5
CONFIG_FILE = 'config.py'
# A process that was killed with its node may need a moment to end.
_WAIT_SECONDS = 60
_PR_SET_PDEATHSIG = 1  # Linux, <sys/prctl.h>


def main(work_dir: Path) -> int:
    """Train what ``<work_dir>/config.py`` says, or go on with it.

    Args:
        work_dir: Folder of the run.

    Returns:
        Exit code.
    """
    # Held by the process that writes here, whatever happens to those that
    # started it.
    lock = FileLock(work_dir / 'lock')
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        return _wait(lock, work_dir)
    with held:
        return _train(work_dir)


def _train(work_dir: Path) -> int:
    try:
        cfg = load_config(str(work_dir / CONFIG_FILE), work_dir=str(work_dir))
        train(cfg, resume='auto')
    except UserInputError as error:
        print(f'error: {error}', file=sys.stderr)
        return UNUSABLE
    except DivergedError as error:
        print(error, file=sys.stderr)
        return DIVERGED
    return 0


def _wait(lock: FileLock, work_dir: Path) -> int:
    """Wait for who trains here; what is left to do then is to be seen."""
    try:
        with lock.acquire(timeout=_WAIT_SECONDS):
            return WAITED
    except Timeout:
        print(f'another process trains in {work_dir}', file=sys.stderr)
        return BUSY


def _end_with_parent(parent: int) -> None:
    """Get a signal if the starting process dies, where there is such a one."""
    if sys.platform != 'linux':
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(f'process {parent}, which started this one, has ended')


if __name__ == '__main__':
    _end_with_parent(int(sys.argv[2]))
    sys.exit(main(Path(sys.argv[1])))
