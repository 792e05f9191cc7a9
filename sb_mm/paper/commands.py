"""What the verbs of ``tools/paper.py`` do; each takes the verb's options."""

# Counting and training import torch, which takes seconds: where they begin.
import sys
from argparse import Namespace
from pathlib import Path

from rich.console import Console

from sb_mm.arguments import check_number
from sb_mm.errors import UserInputError
from sb_mm.files import product_root, repository

from .cells import Cell, select_cells
from .records import Record, full_trainings, read_records, summary

# Of records: the clone's, or that of who installed a wheel.
RESULTS = (repository() or Path()) / 'results'


def list_cells(args: Namespace) -> None:
    """Print the cells with their configs and what was measured so far."""
    records, row = _read(args.results), '{:40} {:15} {:28} {}'.format
    print(row('cell', 'paper', 'here', 'config and overrides'))
    for cell in _selected(args):
        runs = full_trainings(cell, records)
        here = summary(runs) + (f' (runs: {len(runs)})' if runs else '')
        print(row(cell.id, cell.result_text, here, cell.experiment))


def _selected(args: Namespace) -> list[Cell]:
    return select_cells(args.table, args.width, args.attention, args.cells)


def _read(results: Path) -> list[Record]:
    records = read_records(results)
    if not records and results != RESULTS:
        raise UserInputError(
            f'--results {results} holds no records (*.jsonl): give the folder '
            'that tools/paper.py train --results wrote.'
        )
    return records


def train_cells(args: Namespace) -> int:
    """Train cells that have no record yet; return 1 if a job failed."""
    from .job import train_job
    from .launch import slurm_array

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
    done = len(jobs) - len(todo)
    print(f'jobs: {len(jobs)}, recorded: {done}, to do: {len(todo)}')
    return _train(todo, results, args) if todo else 0


def _train(todo: dict, results: Path, args: Namespace) -> int:
    """Train jobs, each with its number for ``--only``."""
    from sb_mm.engine.checks.data import check_data

    from .launch import follow, run_locally, run_on_ray

    for job in {job.cell.dataset: job for job in todo}.values():
        check_data(job.config(), ('train_dataloader', 'val_dataloader'))
    if args.ray is not None:
        share = args.cpus_per_job, args.gpus_per_job
        started = run_on_ray(todo, results, args.ray, *share)
    else:
        tool = str(product_root() / 'tools/paper.py')
        only = [sys.executable, tool, *sys.argv[1:], '--only']
        commands = {job: [*only, str(number)] for job, number in todo.items()}
        started = run_locally(commands, args.jobs)
    with started as futures:
        failed = follow(futures)
    if failed:
        print(f'failed: {len(failed)}; the same command tries them again')
    return int(bool(failed))


def _planned(args: Namespace) -> list:
    from .launch import plan_jobs

    if not (args.table or args.cells):
        raise UserInputError(
            'Nothing to train: name tables with --table 6, or cells with '
            '--cells (tools/paper.py list shows them).'
        )
    for seed in args.seeds:  # as NumPy takes them
        check_number('--seeds', seed, 0, 2**32 - 1, integer=True)
    for option in ('--epochs', '--jobs', '--cpus-per-job'):
        value = getattr(args, option.strip('-').replace('-', '_'))
        if value is not None:
            check_number(option, value, 1, integer=True)
    epochs, root = args.epochs, args.data_root
    options = {'train_cfg.max_epochs': epochs} if epochs else {}
    jobs = plan_jobs(
        _selected(args),
        args.seeds,
        options=args.cfg_options | options,
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
    folder = repository() / 'docs' if own else args.results
    page = folder / 'results.md'
    with Console(stderr=True).status('counting networks'):
        page.write_text(results_page(records))
    print(f'written: {page}')
