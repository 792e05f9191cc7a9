"""The live table of a reproduction."""

import math
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bars

from sb_mm.paper.records import Record

from .runs import Progress, Run

_UNKNOWN = '-:--:--'


class Display:
    """Runs as bars with loss, metric and ETA; ended ones as lines above.

    Where the output is no terminal, only the lines are printed.

    Args:
        runs: What will be shown.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._console = Console(highlight=False)
        self._epochs = {run: run.config().train_cfg.max_epochs for run in runs}
        self._bars = _bars(
            self._console,
            '{task.description}',
            'epoch {task.completed:.1f}/{task.total:.0f}',
            '{task.fields[values]}',
        )
        self._all = _bars(
            self._console,
            'all runs',
            '{task.fields[ended]} of {task.total:.0f} ended',
            '{task.fields[failed]} failed',
        )
        self._count = len(runs)
        self._total = self._all.add_task(
            '', total=max(1, self._count), ended=0, failed=0, left=_UNKNOWN
        )
        self._ended = 0
        self._failed = 0
        self._since = time.time()
        self._tasks: dict[Run, TaskID] = {}
        self._etas: dict[Run, Eta] = {}
        self._eta: Eta | None = None
        self._live = Live(
            Group(self._bars, self._all),
            console=self._console,
            auto_refresh=self._console.is_terminal,
        )

    def __enter__(self) -> 'Display':
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._console.is_terminal:
            # Else the last state of the bars is printed among the lines.
            self._live.update('')
        self._live.stop()

    def update(self) -> None:
        """Read the logs of what has not ended."""
        done = float(self._ended)
        for run, epochs in self._epochs.items():
            progress = run.progress()
            if not (progress.epochs or self._has_begun(run)):
                continue
            done += min(1.0, progress.epochs / epochs)
            if run not in self._tasks:
                self._tasks[run] = self._bars.add_task(
                    run.name, total=epochs, values='', left=_UNKNOWN
                )
                self._etas[run] = Eta(epochs, progress.epochs)
            self._bars.update(
                self._tasks[run],
                completed=progress.epochs,
                values=_values(progress),
                left=self._etas[run].left(progress.epochs),
            )
        self._eta = self._eta or Eta(self._count, done)
        self._all.update(
            self._total,
            completed=done,
            ended=self._ended,
            failed=self._failed,
            left=self._eta.left(done),
        )

    def _has_begun(self, run: Run) -> bool:
        return run.log.is_file() and run.log.stat().st_mtime > self._since

    def end(self, run: Run, outcome: Record | Exception) -> None:
        """Show how a run ended."""
        self._ended += 1
        self._epochs.pop(run)
        if run in self._tasks:
            self._bars.remove_task(self._tasks.pop(run))
        if isinstance(outcome, Exception):
            self._failed += 1
        self.say(f'{run.name}: {describe(outcome)}')
        self.update()

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        # Neither cut nor folded, for what reads it from a file.
        self._console.print(escape(line), soft_wrap=True)


class Eta:
    """Time left, by the speed since the first look.

    rich's own columns forget what is older than half a minute or count from
    the first change, and know nothing of validations and resumed runs.

    Args:
        total: What is to be done.
        done: Of it, at the first look.
    """

    def __init__(self, total: float, done: float) -> None:
        self._total = total
        self._first = done
        self._begin = time.monotonic()

    def left(self, done: float) -> str:
        """Return hours, minutes and seconds, or a blank one."""
        passed = time.monotonic() - self._begin
        if done <= self._first or not passed:
            return _UNKNOWN
        speed = (done - self._first) / passed
        seconds = max(0.0, self._total - done) / speed
        return str(timedelta(seconds=round(seconds)))


def _values(progress: Progress) -> str:
    """Return loss and metric, as far as there are any."""
    if not progress.epochs:
        return 'starting'
    known = ((progress.loss, 'loss {:.3f}'), (progress.metric, '{:.2f} %'))
    return ', '.join(t.format(v) for v, t in known if not math.isnan(v))


def _bars(console: Console, *words: str) -> Bars:
    """Return bars with words on both sides, and the time at the end."""
    first, *others = map(TextColumn, words)
    return Bars(
        first,
        BarColumn(bar_width=20),
        *others,
        TimeElapsedColumn(),
        TextColumn('left {task.fields[left]}'),
        console=console,
    )


def describe(outcome: Record | Exception) -> str:
    """Return an outcome in a few words."""
    if isinstance(outcome, Exception):
        return f'failed: {outcome}'
    hours = f'{outcome.hours:.2f} h'
    if outcome.final is None:
        done = outcome.history[-1][0] if outcome.history else 0
        return f'diverged (/) after epoch {done}, {hours}'
    words = ', at chance (/)' if outcome.diverged else ''
    return f'{outcome.final:.2f} %{words}, {hours}'
