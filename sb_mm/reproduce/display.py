"""The live table of a reproduction."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sb_mm.paper.records import Record

from .runs import Run

# What an ETA is estimated from: rich's own half a minute is less than the time
# between two lines of a slow training's log.
_SPEED_SECONDS = 3600


class Display:
    """Runs as bars with loss, metric and ETA; ended ones as lines above.

    Where the output is no terminal, only the lines are printed.

    Args:
        runs: What will be shown.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._console = Console(highlight=False)
        self._epochs = {run: run.config().train_cfg.max_epochs for run in runs}
        self._bars = _bars_of_runs(self._console)
        self._all = _bar_of_all(self._console)
        self._total = self._all.add_task(
            '', total=len(runs), completed=0, failed=0
        )
        self._ended = 0
        self._failed = 0
        self._tasks: dict[Run, TaskID] = {}
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
            if not progress.epochs:
                continue
            done += min(1.0, progress.epochs / epochs)
            if run not in self._tasks:
                self._tasks[run] = self._bars.add_task(
                    run.name, total=epochs, values=''
                )
            self._bars.update(
                self._tasks[run],
                completed=progress.epochs,
                values=f'loss {progress.loss:.3f}, {progress.metric:.2f} %',
            )
        self._all.update(self._total, completed=done, failed=self._failed)

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


def _bars_of_runs(console: Console) -> Progress:
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(bar_width=20),
        TextColumn('epoch {task.completed:.1f}/{task.total:.0f}'),
        TextColumn('{task.fields[values]}'),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=_SPEED_SECONDS,
    )


def _bar_of_all(console: Console) -> Progress:
    return Progress(
        TextColumn('all runs'),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn('{task.fields[failed]} failed'),
        TimeElapsedColumn(),
        TextColumn('left:'),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        speed_estimate_period=_SPEED_SECONDS,
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
