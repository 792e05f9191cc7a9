"""What the verbs of ``tools/paper.py`` do; each takes the verb's options."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from sb_mm.arguments import check_number
from sb_mm.engine.checks.data import check_data
from sb_mm.errors import UserInputError, first_few
from sb_mm.files import repository

from .cells import REPOSITORY, Cell, find_cell, select_cells
from .cluster import run_on_ray, slurm_array
from .cost import (
    Comparison,
    attention_shapes,
    compare_multiply_adds,
    compare_parameters,
    count,
)
from .job import Job, train_job
from .job_hook import read_job
from .records import Record, check_writable, full_trainings, read_records
from .report import NOT_RUN, paper_result, results_page, summary
from .train import follow, plan_jobs, run_locally

# Of records: the clone's, or that of who installed a wheel.
RESULTS = (repository() or Path()) / 'results'


def list_cells(args: Namespace) -> None:
    """Print the cells with their configs and what was measured so far."""
    records = _read(args.results)
    shown = Table('cell', 'config and overrides', 'paper', 'here', box=None)
    for cell in _selected(args):
        # Lists of layers look like rich's markup.
        entries = [cell.experiment, paper_result(cell)]
        entries.append(_measured(cell, records))
        shown.add_row(cell.id, *map(escape, entries))
    _print(shown)


def _read(results: Path) -> list[Record]:
    records = read_records(results)
    if not records and results != RESULTS:
        raise UserInputError(
            f'--results {results} holds no records (*.jsonl): give the folder '
            'that tools/paper.py train --results wrote.'
        )
    return records


def _selected(args: Namespace) -> list[Cell]:
    return select_cells(args.table, args.width, args.attention, args.cells)


def _print(table: Table) -> None:
    # Tables that go to a file are not folded.
    Console(width=None if sys.stdout.isatty() else 250).print(table)


def _measured(cell: Cell, records: Sequence[Record]) -> str:
    runs = full_trainings(cell, records)
    if runs:
        return f'{summary(runs)} (runs: {len(runs)})'
    reduced = [r for r in records if r.experiment == cell.experiment]
    if not reduced:
        return NOT_RUN
    finals = first_few([record.text for record in reduced])
    return f'{NOT_RUN} ({len(reduced)} reduced: {finals})'


def show_cell(args: Namespace) -> None:
    """Print a cell's config, its cost, and the command to train it."""
    cell = find_cell(args.cell)
    cost, layers = count(cell), attention_shapes(cell)
    print(cell.resolve().pretty_text)
    print(f'# Table {cell.table}, {cell.row}: paper {paper_result(cell)}')
    print(f'# {cost.parameters:,} parameters')
    print(f'# {cost.multiply_adds:,} multiply-adds')
    added = {name: shape.overhead for name, shape in layers.items()}
    for name, (multiplies, adds) in added.items() if args.layers else ():
        print(f'# {name}: {multiplies:,} multiplies, {adds:,} adds')
    multiplies, adds = (sum(x[i] for x in added.values()) for i in (0, 1))
    print(
        f'# SB adds {multiplies:,} multiplies and {adds:,} adds in '
        f'{len(layers)} layers (Eq. 10-17)'
    )
    print(f'# {cell.experiment}')
    print(f'python tools/paper.py train --cells {cell.id} --seeds 0')


def check_cells(args: Namespace) -> int:
    """Print counts beside the printed ones; return 1 on a mismatch."""
    shown = Table(box=None)
    shown.add_column('cell')
    for name in ('parameters', 'multiply-adds (M)'):
        for column in (name, 'paper (M)', 'difference (M)', ''):
            shown.add_column(column, justify='right')
    bar = track(_selected(args), 'counting', console=Console(stderr=True))
    found = {c: (compare_parameters(c), compare_multiply_adds(c)) for c in bar}
    for cell, (parameters, multiply_adds) in found.items():
        shown.add_row(
            cell.id,
            f'{count(cell).parameters:,}',
            *_compared(parameters, '.3f'),
            f'{multiply_adds.ours:.2f}',
            *_compared(multiply_adds, '.2f'),
        )
    _print(shown)
    parameters, adds = map(_summary, zip(*found.values(), strict=True))
    print(
        f'{len(found)} networks; parameters: {parameters}; '
        f'multiply-adds: {adds}'
    )
    wrong = [
        cell.id
        for cell, numbers in found.items()
        if 'MISMATCH' in (number.verdict for number in numbers)
    ]
    if wrong:
        print(f'mismatch: {", ".join(wrong)}')
    return int(bool(wrong))


def _compared(number: Comparison, form: str) -> list[str]:
    """Return the printed number, the difference to it, and a verdict."""
    if number.paper is None:
        return ['', '', '']
    difference = round(number.ours - number.paper, 3) + 0.0  # no negative zero
    return [f'{number.paper:{form}}', f'{difference:+{form}}', number.verdict]


def _summary(numbers: Sequence[Comparison]) -> str:
    verdicts = [number.verdict for number in numbers if number.verdict]
    text = f'{len(verdicts)} printed, {verdicts.count("ok")} as counted here'
    if other := verdicts.count('another network'):
        text += f', {other} of another network (see docs/results.md)'
    return text


def train_cells(args: Namespace) -> int:
    """Train cells that have no record yet; return 1 if a job failed."""
    jobs = _planned(args)
    results = args.results.resolve()
    share = args.cpus_per_job, args.gpus_per_job
    if args.slurm:
        print(slurm_array(sys.argv[1:], len(jobs), *share))
        return 0
    recorded = {record.identity for record in read_records(results)}
    todo = {n: j for n, j in jobs.items() if j.identity not in recorded}
    if args.dry_run:
        _show(jobs, todo)
        return 0
    check_writable(results)
    if args.only is not None:
        print(train_job(jobs[args.only], results))
        return 0
    for job in {j.cell.dataset: j for j in todo.values()}.values():
        check_data(job.config(), ('train_dataloader', 'val_dataloader'))
    print(
        f'jobs: {len(jobs)}, recorded in {args.results}: '
        f'{len(jobs) - len(todo)}, to do: {len(todo)}'
    )
    if not todo:
        return 0
    if args.ray is not None:
        events = run_on_ray(todo.values(), results, args.ray, *share)
    else:
        tool = [sys.executable, str(REPOSITORY / 'tools/paper.py')]
        only = [*tool, *sys.argv[1:], '--only']
        commands = {job: [*only, str(n)] for n, job in todo.items()}
        events = run_locally(commands, args.jobs)
    with closing(events):
        failed = follow(todo.values(), events)
    if failed:
        print(f'failed: {len(failed)}; the same command tries them again')
    return int(bool(failed))


def _planned(args: Namespace) -> dict[int, Job]:
    """Return the jobs by their numbers."""
    if not (args.table or args.cells):
        raise UserInputError(
            'Nothing to train: name tables with --table 6, or cells with '
            '--cells (tools/paper.py list shows them).'
        )
    for seed in args.seeds:  # as NumPy takes them
        check_number('--seeds', seed, 0, 2**32 - 1, integer=True)
    check_number('--cpus-per-job', args.cpus_per_job, 1, integer=True)
    options = dict(args.cfg_options)
    if args.epochs is not None:
        check_number('--epochs', args.epochs, 1, integer=True)
        options['train_cfg.max_epochs'] = args.epochs
    if args.jobs is not None:
        check_number('--jobs', args.jobs, 1, integer=True)
    root = args.data_root
    jobs = plan_jobs(
        _selected(args),
        args.seeds,
        options=options,
        # The processes may start in another folder, on Ray's nodes.
        out=args.out.resolve(),
        data_root=root and str(root.expanduser().resolve()),
        host_loader=args.host_loader,
        channels_last=args.channels_last,
        compile=args.compile,
    )
    numbers = range(len(jobs))
    if args.only is not None:
        check_number('--only', args.only, 0, len(jobs) - 1, integer=True)
        numbers = [args.only]
    return {number: jobs[number] for number in numbers}


def _show(jobs: dict[int, Job], todo: dict[int, Job]) -> None:
    """Print the jobs with what is known of each."""
    for number, job in jobs.items():
        done = len(read_job(job.folder).get('seconds', ()))
        total = job.config().train_cfg.max_epochs
        state = f'epoch {done} of {total}' if number in todo else 'recorded'
        print(f'{number}  {job.name}  {state}  {job.folder}')


def report(args: Namespace) -> None:
    """Write the records into docs/results.md, or into a page beside them."""
    records = _read(args.results)
    own = repository() and args.results.resolve() == RESULTS.resolve()
    folder = REPOSITORY / 'docs' if own else args.results
    page = folder / 'results.md'
    with Console(stderr=True).status('counting networks'):
        page.write_text(results_page(records))
    print(f'written: {page}')
