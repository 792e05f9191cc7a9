"""Jobs side by side: on this machine's cores or GPUs, with bars."""

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sb_mm.engine.checks import check_data
from sb_mm.engine.cli import exit_on_sigterm
from sb_mm.errors import UserInputError, first_line

from .cells import Cell
from .job import Execution, Job, train_job
from .job_hook import read_history, read_job
from .records import Record, check_writable, read_results

# How a job ended: with a record, or with the reason why there is none.
Outcome = Record | str
_POLL_SECONDS = 1.0
_SPAWN = multiprocessing.get_context('spawn')  # CUDA does not stand a fork


def plan_jobs(
    cells: Sequence[Cell],
    seeds: Sequence[int],
    options: dict,
    execution: Execution,
    root: Path,
) -> list[Job]:
    """Return a job for each distinct cell and seed.

    The first seed of every cell comes first, so that work that is cut has
    something of everything.

    Raises:
        UserInputError: If a seed stands twice, or the options of a job fit no
            config.
    """
    if len(set(seeds)) < len(seeds):
        raise UserInputError(
            f'--seeds names a seed twice ({seeds}): a job is done once.'
        )
    distinct: dict[str, Cell] = {}
    for cell in cells:
        distinct.setdefault(cell.experiment, cell)
    return [
        Job(cell, seed, options, execution, root)
        for seed in seeds
        for cell in distinct.values()
    ]


def not_recorded(jobs: Sequence[Job], results: Path) -> list[Job]:
    """Return the jobs without a record, after a look at their input.

    Raises:
        UserInputError: Before any training, if options, data or the folder of
            the records cannot be used.
    """
    check_writable(results)
    found = read_results(results)
    for sentence in found.refused:
        print(f'left out: {sentence}', file=sys.stderr)
    recorded = {record.identity: record for record in found.records}
    for job in jobs:
        record = recorded.get(job.identity)
        if record and not (record.options or record.is_full):
            print(
                f'{job.name} is recorded with {record.train["images"]} images '
                "for training, not the paper's number: to train it again, "
                'remove that line.',
                file=sys.stderr,
            )
    todo = [job for job in jobs if job.identity not in recorded]
    for job in {job.cell.dataset: job for job in reversed(todo)}.values():
        check_data(job.config(), ('train_dataloader', 'val_dataloader'))
    return todo


def default_count() -> int:
    """Return one job at a time for each GPU, or one if there is none."""
    return max(1, torch.cuda.device_count())


@dataclass
class _Running:
    job: Job
    place: dict[str, str]
    process: BaseProcess
    answer: Connection

    def outcome(self) -> Outcome:
        """Return what the process said, or how it ended without a word."""
        try:
            return self.answer.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            return f'its process ended with code {code} (see {self.job.log})'


def run_locally(
    jobs: Sequence[Job], results: Path, count: int
) -> Iterator[tuple[Job, Outcome] | None]:
    """Train jobs in processes of this machine.

    Args:
        jobs: To be trained.
        results: Folder of the records.
        count: Processes at a time. They share the GPUs in turn, or the
            cores equally.

    Yields:
        Every job with its outcome, as they end, and None once a second.
        Closed before its end, it stops what still runs.
    """
    waiting, places = deque(jobs), _places(count)
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and places:
                running.append(
                    _start(waiting.popleft(), results, places.pop(0))
                )
            ready = wait([r.answer for r in running], _POLL_SECONDS)
            for ended in [r for r in running if r.answer in ready]:
                running.remove(ended)
                places.append(ended.place)
                yield ended.job, ended.outcome()
            yield None
    finally:
        for left in running:
            left.process.terminate()
        for left in running:
            left.process.join()


def _places(count: int) -> list[dict[str, str]]:
    """Return the environment variables of the processes."""
    gpus = torch.cuda.device_count()
    if not gpus:
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        return [dict(OMP_NUM_THREADS=str(threads)) for _ in range(count)]
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = given.split(',') if given else [str(i) for i in range(gpus)]
    return [dict(CUDA_VISIBLE_DEVICES=names[i % gpus]) for i in range(count)]


def _start(job: Job, results: Path, place: dict[str, str]) -> _Running:
    answer, other_end = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_child, args=(job, results, other_end))
    with _environment(place):
        process.start()
    other_end.close()  # now the answer ends with the process
    return _Running(job, place, process, answer)


@contextmanager
def _environment(place: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(place)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _child(job: Job, results: Path, answer: Connection) -> None:
    """Train a job in a process of its own, which prints into its log."""
    exit_on_sigterm()
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.log.open('ab', buffering=0) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    answer.send(outcome_of(job, results))


def outcome_of(job: Job, results: Path) -> Outcome:
    """Train a job and return how it ended; a reason is one line."""
    try:
        return train_job(job, results)
    except UserInputError as error:
        return first_line(error)
    except Exception as error:  # whatever it is, the other jobs go on
        sys.excepthook(*sys.exc_info())
        name = type(error).__name__
        return f'{name}: {first_line(error)} (see {job.log})'


def follow(
    jobs: Sequence[Job], events: Iterable[tuple[Job, Outcome] | None]
) -> list[Job]:
    """Show jobs as bars, and print a line for each that ends.

    Args:
        jobs: All of them.
        events: See :func:`run_locally`.

    Returns:
        Those that failed.
    """
    failed: list[Job] = []
    left = list(jobs)
    bars: dict[Job, TaskID] = {}
    with _progress() as progress:
        total = progress.add_task('all jobs', total=len(jobs), result='')
        for event in events:
            if event is None:
                for job in left:
                    _update(progress, bars, job)
                continue
            job, outcome = event
            if isinstance(outcome, str):
                failed.append(job)
            line = escape(f'{job.name}: {describe(outcome)}')
            progress.console.print(line, soft_wrap=True, highlight=False)
            if job in bars:
                progress.remove_task(bars.pop(job))
            left.remove(job)
            progress.advance(total)
    return failed


def _progress() -> Progress:
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(bar_width=20),
        TextColumn('{task.completed:.0f}/{task.total:.0f}'),
        TextColumn('{task.fields[result]}'),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        # Else it forgets the last epoch before the next one ends.
        speed_estimate_period=1e6,
    )


def _update(progress: Progress, bars: dict[Job, TaskID], job: Job) -> None:
    """Show how far a job is, once its training has begun."""
    try:
        described = read_job(job.folder)
    except UserInputError:  # its own process will say it
        return
    if described is None:
        return
    history = read_history(job.folder)
    done, percent = history[-1] if history else (0, None)
    if job not in bars:
        bars[job] = progress.add_task(
            job.name, total=described['epochs'], completed=done, result=''
        )
    result = '' if percent is None else f'{percent:.2f} %'
    progress.update(bars[job], completed=done, result=result)


def describe(outcome: Outcome) -> str:
    """Return an outcome in a few words."""
    if isinstance(outcome, str):
        return f'failed: {outcome}'
    hours = f'{outcome.hours:.2f} h'
    if outcome.final is None:
        done = outcome.history[-1][0] if outcome.history else 0
        return f'diverged (/) after epoch {done}, {hours}'
    words = ', at chance (/)' if outcome.failed else ''
    return f'{outcome.final:.2f} %{words}, {hours}'
