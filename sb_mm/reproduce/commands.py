"""What ``tools/reproduce.py`` does."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sb_mm.arguments import check_number
from sb_mm.engine.preflight import check_data
from sb_mm.errors import UserInputError, first_few, first_line
from sb_mm.paper.cells import Cell, find_cell, select_cells
from sb_mm.paper.commands import report_command
from sb_mm.paper.records import Record, append_record, read_results
from sb_mm.paper.runs import has_expected_data

from .cluster import Share, run_on_ray
from .display import Display, describe
from .local import Outcome, default_jobs, run_locally
from .recipe import Recipe, check_seeds
from .runs import Run, plan_runs

_OF_CLUSTERS = ('cpus_per_run', 'gpus_per_run')
_EXCLUSIVE = (
    ('slurm', 'only'),  # it numbers the runs itself
    ('slurm', 'dry_run'),
    ('slurm', 'ray'),
    ('slurm', 'jobs'),
    ('ray', 'jobs'),
    ('host_loader', 'channels_last'),
)


@dataclass(frozen=True)
class Selection:
    """Which runs are asked for.

    Attributes:
        tables: Numbers.
        widths: Factors, of the tables' cells; all if empty.
        attentions: Such as ``'SB'``, of the tables' cells; all if empty.
        cells: Ids, besides those of the tables.
        seeds: One run of each cell for each.
    """

    tables: Sequence[int] = ()
    widths: Sequence[float] = ()
    attentions: Sequence[str] = ()
    cells: Sequence[str] = ()
    seeds: Sequence[int] = (0,)

    def select(self) -> list[Cell]:
        """Return the cells, in the paper's order.

        Raises:
            UserInputError: If something named does not exist, or nothing is
                left.
        """
        if not (self.tables or self.cells):
            raise UserInputError(
                'Nothing to reproduce: name tables with --table 6, or cells '
                'with --cells (tools/paper.py list shows them).'
            )
        if (self.widths or self.attentions) and not self.tables:
            raise UserInputError(
                '--width and --attention select from a table, and no --table '
                'is given: name one, or leave them out.'
            )
        found = [c for t in self.tables for c in select_cells(t)]
        for width in self.widths:
            select_cells(width=width)
        found = [
            c
            for c in found
            if c.width in (self.widths or [c.width])
            and c.attention in (self.attentions or [c.attention])
        ]
        found += [find_cell(name) for name in self.cells]
        if not found:
            raise UserInputError(
                f'No cell of table {first_few([*map(str, self.tables)])} has '
                f'width {first_few([*map(str, self.widths)]) or "any"} and '
                f'attention {first_few([*self.attentions]) or "any"}.'
            )
        return found


@dataclass(frozen=True)
class Engine:
    """Where and how the runs are done.

    Attributes:
        jobs: Processes at a time on this machine; None for one a GPU.
        ray: Address of a Ray cluster; None for this machine only.
        share: Of each run on Ray.
        retries: How often a run that failed is started again.
    """

    jobs: int | None = None
    ray: str | None = None
    share: Share = Share()
    retries: int = 1

    def __post_init__(self) -> None:
        if self.jobs is not None:
            check_number('--jobs', self.jobs, 1, 1024, integer=True)
        check_number('--retries', self.retries, 0, 100, integer=True)

    def start(
        self, runs: Sequence[Run]
    ) -> Iterator[tuple[Run, Outcome] | None]:
        """Do the runs; yields as the two engines do."""
        if self.ray is not None:
            return run_on_ray(runs, self.ray, self.share, self.retries)
        return run_locally(runs, self.jobs or default_jobs(), self.retries)


def check_options(given: Mapping[str, Any]) -> None:
    """Refuse options of which one would be ignored.

    Args:
        given: Those of ``tools/reproduce.py``, with None or False for what
            was left out.

    Raises:
        UserInputError: Names the options.
    """
    named = {k for k, v in given.items() if v is not None and v is not False}
    for pair in _EXCLUSIVE:
        if named.issuperset(pair):
            one, other = map(_flag, pair)
            raise UserInputError(
                f'{one} and {other} cannot be combined: leave one out.'
            )
    shares = [_flag(name) for name in _OF_CLUSTERS if name in named]
    if shares and not named & {'ray', 'slurm'}:
        raise UserInputError(
            f'{shares[0]} is for --ray and --slurm: use --jobs here.'
        )


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')


def plan(
    selection: Selection, recipe: Recipe, root: Path, only: int | None = None
) -> list[Run]:
    """Return the runs that are asked for.

    Args:
        selection: Of cells and seeds.
        recipe: Of all.
        root: Folder of their logs and checkpoints.
        only: Number of a single one, from 0.

    Raises:
        UserInputError: If something in the selection does not exist or has no
            effect, or the root cannot be a folder.
    """
    check_seeds(list(selection.seeds))
    _check_root(root)
    runs = plan_runs(selection.select(), selection.seeds, recipe, root)
    if only is not None:
        check_number('--only', only, 0, len(runs) - 1, integer=True)
        runs = [runs[only]]
    return runs


def _check_root(root: Path) -> None:
    there = next(p for p in (root, *root.parents) if p.exists())
    if not there.is_dir():
        raise UserInputError(
            f'--out {root} cannot be a folder, as {there} is a file: give '
            'another.'
        )


def reproduce(runs: Sequence[Run], results: Path, engine: Engine) -> int:
    """Do the runs that are not recorded yet, and record them.

    Args:
        runs: Of :func:`plan`.
        results: Folder of the records.
        engine: Where they are done.

    Returns:
        Exit code: 1 if a run failed.

    Raises:
        UserInputError: Before any training, if the data or the records cannot
            be used.
    """
    _check_results(results)
    todo = _not_recorded(runs, results)
    print(
        f'runs: {len(runs)}, recorded already: {len(runs) - len(todo)}, '
        f'to do: {len(todo)}'
    )
    if len(todo) < len(runs):
        print(f'({results} has those; with another --results, all are done)')
    _check_inputs(todo, engine)
    failed: list[Run] = []
    if todo:
        try:
            failed = _do(todo, results, engine)
        except KeyboardInterrupt:
            print('the same command again goes on where this stopped')
            raise
    _summarize(todo, failed, results)
    return 1 if failed else 0


def _do(runs: Sequence[Run], results: Path, engine: Engine) -> list[Run]:
    """Do and record the runs; return those that failed."""
    failed = []
    with Display(runs) as display, closing(engine.start(runs)) as events:
        for event in events:
            if event is None:
                display.update()
                continue
            run, outcome = event
            outcome = _recorded(outcome, results)
            if not isinstance(outcome, Record):
                failed.append(run)
            display.end(run, outcome)
    return failed


def _check_results(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / '.lock').touch()
    except OSError as error:
        raise UserInputError(
            f'--results {folder} cannot be written to '
            f'({first_line(error)}): choose another folder.'
        ) from error


def _recorded(outcome: Outcome, results: Path) -> Outcome:
    """Record a result; return why, if that cannot be."""
    if isinstance(outcome, Record):
        try:
            append_record(outcome, results)
        except (UserInputError, OSError) as error:
            # The other trainings go on.
            return error
    return outcome


def _not_recorded(runs: Sequence[Run], results: Path) -> list[Run]:
    found = read_results(results)
    for sentence in found.refused:
        print(f'left out: {sentence}', file=sys.stderr)
    todo = []
    for run in runs:
        record = run.find_in(found.records)
        if record is None:
            todo.append(run)
        elif not has_expected_data(record.deviations):
            print(
                f'{run.name} is recorded with other data '
                f'({first_few(record.deviations)}): to train it again, delete '
                f'that line and {run.work_dir}.',
                file=sys.stderr,
            )
    return todo


def _check_inputs(runs: Sequence[Run], engine: Engine) -> None:
    """Look at the data of every dataset once, before any training."""
    amp = any(run.recipe.amp for run in runs)
    # Ray's nodes are looked at when they are known.
    if amp and engine.ray is None and not torch.cuda.is_available():
        raise UserInputError(
            '--amp needs a GPU, and this machine has none: leave it out.'
        )
    first = {run.cell.dataset: run for run in reversed(runs)}
    for run in first.values():
        check_data(run.config(), ('train_dataloader', 'val_dataloader'))


def _summarize(
    todo: Sequence[Run], failed: Sequence[Run], results: Path
) -> None:
    done = len(todo) - len(failed)
    if todo:
        print(f'recorded in {results}: {done}, failed: {len(failed)}')
    if done:
        print(f'{report_command(results)} puts them beside the paper')
    if failed:
        print('the same command again goes on with what failed')


def show(runs: Sequence[Run], results: Path) -> None:
    """Print the runs with what is known of each."""
    found = read_results(results).records
    table = Table('', 'run', 'state', 'folder', box=None)
    for number, run in enumerate(runs):
        entries = (str(number), run.name, _state(run, found), run.work_dir)
        table.add_row(*(escape(str(entry)) for entry in entries))
    console = Console(width=None if sys.stdout.isatty() else 250)
    console.print(table)


def _state(run: Run, records: Sequence[Record]) -> str:
    if run.find_in(records):
        return 'recorded'
    if result := run.result():
        return f'finished, not recorded: {describe(result)}'
    progress = run.progress()
    total = run.config().train_cfg.max_epochs
    if progress.epochs:
        return f'epoch {progress.epochs:.1f} of {total}'
    return f'not started ({total} epochs)'
