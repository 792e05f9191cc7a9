"""What the verbs of ``tools/paper.py`` do; each takes the verb's options."""

# Counting and training import torch, which takes seconds: where they begin.
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from sb_mm.arguments import check_number
from sb_mm.errors import UserInputError
from sb_mm.files import repository

from .cells import REPOSITORY, Cell, select_cells
from .records import Record, full_trainings, read_records, summary

# Of records: the clone's, or that of who installed a wheel.
RESULTS = (repository() or Path()) / 'results'


def list_cells(args: Namespace) -> None:
    """Print the cells with their configs and what was measured so far."""
    records = _read(args.results)
    shown = Table('cell', 'config and overrides', 'paper', 'here', box=None)
    for cell in _selected(args):
        # Lists of layers look like rich's markup.
        config, runs = escape(cell.experiment), full_trainings(cell, records)
        count = f' (runs: {len(runs)})' if runs else ''
        here = f'{summary(runs)}{count}'
        shown.add_row(cell.id, config, cell.result_text, here)
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


def check_cells(args: Namespace) -> int:
    """Print counts beside the printed ones; return 1 on a mismatch."""
    from . import cost

    shown = Table('cell', box=None)
    for name in ('parameters', 'multiply-adds'):
        for column in (name, 'paper (M)', ''):
            shown.add_column(column, justify='right')
    shown.add_column('of SB, Eq. 10-17: multiplies, adds', justify='right')
    said: Counter[str] = Counter()
    bar = track(_selected(args), 'counting', console=Console(stderr=True))
    for cell in bar:
        verdicts = cost.parameters_verdict(cell), cost.madds_verdict(cell)
        said.update(filter(None, verdicts))
        counted, row = cost.count(cell), [cell.id]
        for number, key, verdict in zip(
            counted[:2], ('params_m', 'madds_m'), verdicts, strict=True
        ):
            row += [f'{number:,}', str(cell.printed.get(key, '')), verdict]
        if cell.attention == 'SB':
            row.append('{:,}, {:,}'.format(*counted.overhead))
        shown.add_row(*row)
    _print(shown)
    print(', '.join(f'{number} {word}' for word, number in said.items()))
    return int(cost.MISMATCH in said)


def train_cells(args: Namespace) -> int:
    """Train cells that have no record yet; return 1 if a job failed."""
    from sb_mm.engine.checks.data import check_data

    from .job import train_job
    from .launch import follow, slurm_array

    jobs, results = _planned(args), args.results.resolve()
    if args.slurm:
        share = args.cpus_per_job, args.gpus_per_job
        print(slurm_array(sys.argv[1:], len(jobs), *share))
        return 0
    recorded = {record.identity for record in read_records(results)}
    todo = {j: n for n, j in enumerate(jobs) if j.identity not in recorded}
    if args.dry_run:
        for number, job in enumerate(jobs):
            state = 'to do' if job in todo else 'recorded'
            print(f'{number}  {job.name}  {state}  {job.folder}')
        return 0
    # Before long work, that no record can be written.
    results.mkdir(parents=True, exist_ok=True)
    (results / '.lock').touch()
    if args.only is not None:
        print(train_job(jobs[args.only], results))
        return 0
    for job in {j.cell.dataset: j for j in todo}.values():
        check_data(job.config(), ('train_dataloader', 'val_dataloader'))
    print(
        f'jobs: {len(jobs)}, recorded in {args.results}: '
        f'{len(jobs) - len(todo)}, to do: {len(todo)}'
    )
    if not todo:
        return 0
    with closing(_started(args, todo, results)) as events:
        failed = follow(todo, events)
    if failed:
        print(f'failed: {len(failed)}; the same command tries them again')
    return int(bool(failed))


def _started(args: Namespace, todo: dict, results: Path) -> Generator:
    from .launch import run_locally, run_on_ray

    if args.ray is not None:
        share = args.cpus_per_job, args.gpus_per_job
        return run_on_ray(todo, results, args.ray, *share)
    tool = [sys.executable, str(REPOSITORY / 'tools/paper.py')]
    only = [*tool, *sys.argv[1:], '--only']
    commands = {job: [*only, str(number)] for job, number in todo.items()}
    return run_locally(commands, args.jobs)


def _planned(args: Namespace) -> list:
    from .launch import plan_jobs

    if not (args.table or args.cells):
        raise UserInputError(
            'Nothing to train: name tables with --table 6, or cells with '
            '--cells (tools/paper.py list shows them).'
        )
    for seed in args.seeds:  # as NumPy takes them
        check_number('--seeds', seed, 0, 2**32 - 1, integer=True)
    for name in ('epochs', 'jobs', 'cpus_per_job'):
        if (value := getattr(args, name)) is not None:
            option = f'--{name.replace("_", "-")}'
            check_number(option, value, 1, integer=True)
    options = dict(args.cfg_options)
    if args.epochs is not None:
        options['train_cfg.max_epochs'] = args.epochs
    root = args.data_root
    jobs = plan_jobs(
        _selected(args),
        args.seeds,
        options=options,
        # The processes may start in another folder, on Ray's nodes.
        out=args.out.resolve(),
        data_root=root and str(root.expanduser().resolve()),
        channels_last=args.channels_last,
        compile=args.compile,
    )
    if args.only is not None:
        check_number('--only', args.only, 0, len(jobs) - 1, integer=True)
    return jobs


def report(args: Namespace) -> None:
    """Write the records into docs/results.md, or into a page beside them."""
    from .report import results_page

    records = _read(args.results)
    own = repository() and args.results.resolve() == RESULTS.resolve()
    folder = REPOSITORY / 'docs' if own else args.results
    page = folder / 'results.md'
    with Console(stderr=True).status('counting networks'):
        page.write_text(results_page(records))
    print(f'written: {page}')
