"""One run, from its config to its record, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from sb_mm.errors import UserInputError
from sb_mm.paper.records import Record

from .child import BUSY, CONFIG_FILE, DIVERGED, UNUSABLE, WAITED
from .runs import Run

# How much of a log's end is searched for the reason of a failure.
_TAIL = 20


class RunFailedError(RuntimeError):
    """A training ended without a result; another try may have one."""


class Processes:
    """The trainings that this process started, to be ended with it."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self._closed = False

    def run(self, command: list[str], log: Path, env: Mapping) -> int:
        """Run a command to its end and return its exit code."""
        with log.open('ab') as stream:
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=dict(env),
            )
        self._running.add(process)
        if self._closed:
            process.terminate()
        code = process.wait()
        self._running.discard(process)
        return code

    def stop(self) -> None:
        """End all, and every one that is started later."""
        self._closed = True
        for process in list(self._running):
            process.terminate()


def execute(
    run: Run,
    environment: Mapping[str, str] | None = None,
    processes: Processes | None = None,
) -> Record:
    """Train a run, or what is left of it, and return its record.

    Args:
        run: To be done. What its folder holds already is not done again.
        environment: More environment variables, such as the GPU.
        processes: Where the training's process is noted.

    Raises:
        UserInputError: If the training refuses its input.
        RunFailedError: If it stops otherwise; names the log and its last
            words.
    """
    run.check_resume()
    if record := run.result():
        return record
    _write_config(run)
    command = [sys.executable, '-m', 'sb_mm.reproduce.child']
    command += [str(run.work_dir), str(os.getpid())]
    own = dict(os.environ, PYTHONPATH=python_path())
    env = {**own, **(environment or {})}
    code = (processes or Processes()).run(command, run.log, env)
    if code in (0, DIVERGED):
        return run.record()
    if code == WAITED:
        return execute(run, environment, processes)
    message = f'{_last_words(run.log)} (see {run.log})'
    if code == UNUSABLE:
        raise UserInputError(message.removeprefix('error: '))
    if code == BUSY:
        # It may be about to end, with the node that started it.
        raise RunFailedError(
            f'Another process trains {run.name} in {run.work_dir}: wait for '
            'it, or stop it.'
        )
    raise RunFailedError(f'exit code {code}: {message}')


def python_path() -> str:
    """Return the PYTHONPATH with which this package is found."""
    given = os.environ.get('PYTHONPATH')
    package = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([package, *([given] if given else [])])


def _write_config(run: Run) -> None:
    run.work_dir.mkdir(parents=True, exist_ok=True)
    file = run.work_dir / CONFIG_FILE
    draft = file.with_name(f'.{os.getpid()}_{CONFIG_FILE}')
    run.config().dump(str(draft))
    draft.replace(file)


def _last_words(log: Path) -> str:
    """Return the last line of a log that says what happened."""
    lines = log.read_text(errors='replace').splitlines()[-_TAIL:]
    spoken = [line.strip() for line in lines if line.strip()]
    errors = [line for line in spoken if 'rror' in line]
    return (errors or spoken or ['it printed nothing'])[-1]
