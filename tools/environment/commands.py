"""Runs commands into a log file, with signs of life on the terminal."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import SetupError

CAUSES = (
    (
        'Failed to establish a new connection|Max retries exceeded|'
        'Temporary failure in name resolution|Failed to resolve|'
        'Network is unreachable|Connection refused|ConnectTimeout|'
        'Read timed out|ProxyError|NewConnectionError|IncompleteRead',
        'the package index was not reached; check the network or the proxy',
    ),
    (
        'No matching distribution found',
        'the package index was not reached or lacks one of the pinned '
        'versions; check the network or the proxy',
    ),
    ('No space left on device', 'the disk is full; make room'),
    (
        'Killed signal terminated program',
        'the compiler ran out of memory; set MAX_JOBS=1',
    ),
)
# pip must not write to the user's site, ask questions or advertise itself.
QUIET = {
    'PIP_USER': '0',
    'PIP_NO_INPUT': '1',
    'PIP_DISABLE_PIP_VERSION_CHECK': '1',
    'PIP_PROGRESS_BAR': 'off',
}


def duration(seconds: float) -> str:
    """Format `seconds` as ``48 s`` or ``9 min 05 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes} min {rest:02d} s' if minutes else f'{rest} s'


def reason(task: str, output: str, log: Path) -> str:
    """Return the one sentence that says why `task` failed.

    Args:
        task: What was being done, as the start of a sentence.
        output: What the command wrote.
        log: The file that holds it all.
    """
    for pattern, advice in CAUSES:
        if re.search(pattern, output, re.I):
            return f'{task} failed: {advice}, then call it again (log: {log}).'
    errors = re.findall(r'^.*\b\w*error: .*$', output, re.I | re.M)
    cause = f' with "{errors[-1].strip()[:160]}"' if errors else ''
    return f'{task} failed{cause}; the log {log} says more.'


class Runner:
    """Runs commands one after the other.

    Args:
        log: The file that takes all output; it is begun again.
        every: Seconds between two signs of life.
        held: File descriptors that the children keep open: a lock then holds
            until an orphaned pip has ended.
    """

    def __init__(
        self, log: Path, every: float = 30, held: Sequence[int] = ()
    ) -> None:
        self.log = log
        self.every = every
        self.held = held
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text('')

    def run(
        self, task: str, *command: str | Path, env: Mapping[str, str] = {}
    ) -> None:
        """Run `command` to its end.

        Args:
            task: What it does, as the start of a sentence about its failure.
            *command: The program and its arguments.
            env: Variables to add to the environment.

        Raises:
            SetupError: If the command fails.
        """
        with self.log.open('a') as log:
            print('$', *command, file=log, flush=True)
            start = log.tell()
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **QUIET, **env},
                start_new_session=True,
                pass_fds=self.held,
            )
            code = self._watch(process)
        if code:
            output = self.log.read_bytes()[start:].decode(errors='replace')
            raise SetupError(reason(task, output, self.log))

    def _watch(self, process: subprocess.Popen) -> int:
        start = time.monotonic()
        try:
            while True:
                try:
                    return process.wait(self.every)
                except subprocess.TimeoutExpired:
                    elapsed = duration(time.monotonic() - start)
                    print(f'      ... {elapsed}', flush=True)
        finally:
            _end(process)


def _end(process: subprocess.Popen) -> None:
    """End a child that still runs, its compilers included."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
