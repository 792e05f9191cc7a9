"""What the verbs of ``tools/paper.py`` do; each takes the verb's options."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from sb_mm.arguments import check_number
from sb_mm.engine.cli import exit_on_sigterm
from sb_mm.errors import UserInputError, first_few

from .cells import REPOSITORY, Cell, find_cell, select_cells
from .cluster import run_on_ray, slurm_array
from .cost import Comparison, check_cell, layer_overheads
from .job import Execution, Job
from .job_hook import read_history
from .records import Record, check_writable, read_results, summarize
from .report import (
    NOT_RUN,
    final_result,
    generate,
    paper_result,
    results_page,
    stale,
)
from .train import default_count, follow, not_recorded, plan_jobs, run_locally


def results_folder() -> Path:
    """Return the folder of records: the clone's, or that of who installed."""
    is_clone = (REPOSITORY / 'setup.py').is_file()
    return REPOSITORY / 'results' if is_clone else Path('results')


def _print(table: Table) -> None:
    # Tables that go to a file are not folded.
    Console(width=None if sys.stdout.isatty() else 250).print(table)


def list_cells(
    table: Sequence[int],
    width: Sequence[float],
    attention: Sequence[str],
    cells: Sequence[str],
    results: Path,
) -> None:
    """Print the cells with their configs and what was measured so far."""
    _check_folder(results)
    found = read_results(results)
    _say_refused(found.refused)
    shown = Table('cell', 'config and overrides', 'paper', 'here', box=None)
    for cell in select_cells(table, width, attention, cells):
        measured = _measured(cell, found.records)
        # Lists of layers look like rich's markup.
        entries = (cell.experiment, paper_result(cell), measured)
        shown.add_row(cell.id, *map(escape, entries))
    _print(shown)


def _check_folder(results: Path) -> None:
    if not (results == results_folder() or results.is_dir()):
        raise UserInputError(
            f'--results {results} is not a folder: give the one that holds '
            'the records.'
        )


def _say_refused(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(f'left out: {sentence}', file=sys.stderr)


def _measured(cell: Cell, records: Sequence[Record]) -> str:
    runs = summarize(cell, records)
    if runs is not None:
        return f'{runs} (runs: {len(runs.records)})'
    reduced = [r for r in records if r.experiment == cell.experiment]
    if not reduced:
        return NOT_RUN
    finals = first_few([final_result(record) for record in reduced])
    return f'{NOT_RUN} ({len(reduced)} reduced: {finals})'


def show_cell(cell: str, layers: bool = False) -> None:
    """Print a cell's resolved config, its cost, and the command to train it.

    Args:
        cell: Id of the cell.
        layers: Print the overhead of every layer too.
    """
    found = find_cell(cell)
    counted = check_cell(found).cost
    overheads = layer_overheads(found)
    print(found.resolve().pretty_text)
    print(f'# Table {found.table}, {found.row}: paper {paper_result(found)}')
    print(f'# {counted.parameters:,} parameters')
    print(f'# {counted.multiply_adds:,} multiply-adds')
    for name, shape in overheads.items() if layers else ():
        print(
            f'# {name}: {shape.multiplies:,} multiplies, {shape.adds:,} adds'
        )
    multiplies = sum(shape.multiplies for shape in overheads.values())
    adds = sum(shape.adds for shape in overheads.values())
    print(
        f'# SB adds {multiplies:,} multiplies and {adds:,} adds in '
        f'{len(overheads)} layers (Eq. 10-17)'
    )
    print(f'# {found.experiment}')
    print(f'python tools/paper.py train --cells {found.id} --seeds 0')


def check_cells(
    table: Sequence[int] = (),
    width: Sequence[float] = (),
    attention: Sequence[str] = (),
    cells: Sequence[str] = (),
) -> int:
    """Print counts beside the printed ones; return 1 on a mismatch."""
    selected = select_cells(table, width, attention, cells)
    bar = track(selected, 'counting', console=Console(stderr=True))
    checked = [check_cell(cell) for cell in bar]
    shown = Table(box=None)
    shown.add_column('cell')
    for name in ('parameters', 'multiply-adds (M)'):
        for column in (name, 'paper (M)', 'difference (M)', ''):
            shown.add_column(column, justify='right')
    for entry in checked:
        shown.add_row(
            entry.cell.id,
            f'{entry.cost.parameters:,}',
            *_compared(entry.parameters, '.3f'),
            f'{entry.multiply_adds.ours:.2f}',
            *_compared(entry.multiply_adds, '.2f'),
        )
    _print(shown)
    print(
        f'{len(checked)} networks; parameters: '
        f'{_summary([c.parameters for c in checked])}; multiply-adds: '
        f'{_summary([c.multiply_adds for c in checked])}'
    )
    wrong = [entry.cell.id for entry in checked if not entry.matches]
    if wrong:
        print(f'mismatch: {", ".join(wrong)}')
    return int(bool(wrong))


def _compared(number: Comparison, form: str) -> list[str]:
    """Return the printed number, the difference to it, and a verdict."""
    if number.paper is None:
        return ['', '', '']
    verdict = 'ok' if number.matches else 'MISMATCH'
    if not number.is_checked:
        verdict = 'another network'
    difference = round(number.ours - number.paper, 3) + 0.0  # no negative zero
    return [f'{number.paper:{form}}', f'{difference:+{form}}', verdict]


def _summary(numbers: Sequence[Comparison]) -> str:
    printed = [c for c in numbers if c.paper is not None]
    equal = sum(c.is_checked and c.matches for c in printed)
    text = f'{len(printed)} printed, {equal} as counted here'
    if other := sum(not c.is_checked for c in printed):
        text += f', {other} of another network (see docs/results.md)'
    return text


def train_cells(
    table: Sequence[int],
    width: Sequence[float],
    attention: Sequence[str],
    cells: Sequence[str],
    results: Path,
    **given,
) -> int:
    """Train cells that have no record yet; return 1 if a job failed.

    Args:
        table: Numbers, with ``width`` and ``attention`` to select from them.
        width: Factors.
        attention: Such as ``'SB'``.
        cells: Ids.
        results: Folder of the records.
        given: The further options of ``tools/paper.py train``.
    """
    if not (table or cells):
        raise UserInputError(
            'Nothing to train: name tables with --table 6, or cells with '
            '--cells (tools/paper.py list shows them).'
        )
    selected = select_cells(table, width, attention, cells)
    jobs = _plan(selected, given)
    if given['slurm']:
        share = given['cpus_per_job'], given['gpus_per_job']
        print(slurm_array(sys.argv[1:], len(jobs), *share), end='')
        return 0
    if given['dry_run']:
        _show(jobs, results)
        return 0
    todo = not_recorded(jobs, results.resolve())
    print(
        f'jobs: {len(jobs)}, recorded in {results}: {len(jobs) - len(todo)}, '
        f'to do: {len(todo)}'
    )
    failed = _do(todo, results.resolve(), given) if todo else []
    if failed:
        print(f'failed: {len(failed)}; the same command tries them again')
    if len(failed) < len(todo):
        print(f'{report_command(results)} puts the results beside the paper')
    return int(bool(failed))


def _plan(cells: Sequence[Cell], given: dict[str, Any]) -> list[Job]:
    options = dict(given['cfg_options'])
    if given['epochs'] is not None:
        options['train_cfg.max_epochs'] = given['epochs']
    root = given['data_root']
    execution = Execution(
        # The processes may start in another folder, on Ray's nodes.
        root and str(root.expanduser().resolve()),
        not given['host_loader'],
        given['channels_last'],
        given['compile'],
    )
    out = given['out'].resolve()
    jobs = plan_jobs(cells, given['seeds'], options, execution, out)
    if given['only'] is None:
        return jobs
    check_number('--only', given['only'], 0, len(jobs) - 1, integer=True)
    return [jobs[given['only']]]


def _show(jobs: Sequence[Job], results: Path) -> None:
    """Print the jobs with what is known of each."""
    recorded = {r.identity for r in read_results(results).records}
    for number, job in enumerate(jobs):
        history = read_history(job.folder)
        done = history[-1][0] if history else 0
        state = f'epoch {done} of {job.config().train_cfg.max_epochs}'
        state = 'recorded' if job.identity in recorded else state
        print(f'{number}  {job.name}  {state}  {job.folder}')


def _do(jobs: Sequence[Job], results: Path, given: dict) -> list[Job]:
    """Train jobs; return those that failed."""
    if given['ray'] is not None:
        share = given['cpus_per_job'], given['gpus_per_job']
        events = run_on_ray(jobs, results, given['ray'], *share)
    else:
        count = given['jobs'] or default_count()
        events = run_locally(jobs, results, count)
    exit_on_sigterm()
    try:
        with closing(events):
            return follow(jobs, events)
    except KeyboardInterrupt:
        print('the same command again goes on where this stopped')
        raise


def report(check: bool, results: Path) -> int:
    """Write the generated files, or say which are stale; return 1 then.

    Args:
        check: Write nothing.
        results: Folder of the records. For another one than the clone's, only
            a page of results is written, into that folder.
    """
    _check_folder(results)
    own = results.resolve() == (REPOSITORY / 'results').resolve()
    found = read_results(results)
    _say_refused(found.refused)
    page = results / 'results.md'
    if not (own or found.records):
        raise UserInputError(
            f'--results {results} holds no records (*.jsonl): give the folder '
            'that tools/paper.py train --results wrote.'
        )
    if not check:
        check_writable(results)
    with Console(stderr=True).status('counting every network'):
        files = generate(found) if own else {page: results_page(found)}
    outdated = stale(files)
    for path in outdated:
        if not check:
            path.write_text(files[path])
        print(f'{"stale" if check else "written"}: {path}')
    if not outdated:
        print(f'all {len(files)} files are up to date')
    elif check:
        print(f'run: {report_command(results)}')
    return int(check and bool(outdated))


def report_command(results: Path) -> str:
    """Return the shell command that reports on the records in a folder."""
    words = ['python', 'tools/paper.py', 'report']
    own = results.resolve() == results_folder().resolve()
    words += [] if own else ['--results', str(results)]
    return shlex.join(words)
