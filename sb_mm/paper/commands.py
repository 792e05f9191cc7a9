"""What ``tools/paper.py`` does."""

import os
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from sb_mm.errors import UserInputError, first_few
from sb_mm.files import repository

from .cells import REPOSITORY, Cell, find_cell, select_cells
from .check import CheckedCell, Comparison, check_cell, layer_overheads
from .counting import Overhead
from .records import (
    RESULTS,
    Record,
    append_record,
    read_results,
    record_run,
    reduced_runs,
    summarize,
)
from .report import (
    generate,
    is_generated,
    paper_result,
    results_page,
    stale,
    write,
)
from .writing import NOT_RUN, final_result, our_result


def _console() -> Console:
    """Return a console that does not fold tables that go to a file."""
    return Console(width=None if sys.stdout.isatty() else 250)


def list_cells(
    table: int | None, width: float | None, results: Path = RESULTS
) -> None:
    """Print the cells with their configs and what was measured so far."""
    cells = select_cells(table, width)
    _check_folder(results)
    found = read_results(results)
    for sentence in found.refused:
        print(f'left out: {sentence}', file=sys.stderr)
    records = found.records
    shown = Table('cell', 'config and overrides', 'paper', 'here', box=None)
    for cell in cells:
        what = ' '.join([cell.config, *cell.options()])
        # Lists of layers look like rich's markup.
        entries = (what, paper_result(cell), _measured(cell, records))
        shown.add_row(cell.id, *map(escape, entries))
    _console().print(shown)


def _check_folder(results: Path) -> None:
    if not (_is_own(results) or results.is_dir()):
        raise UserInputError(
            f'--results {results} is not a folder: give the one that holds '
            'the records.'
        )


def _measured(cell: Cell, records: list[Record]) -> str:
    runs = summarize(cell, records)
    if runs is not None:
        return f'{our_result(runs)} (runs: {len(runs.records)})'
    reduced = reduced_runs(cell, records)
    if not reduced:
        return NOT_RUN
    finals = first_few([final_result(record) for record in reduced])
    return f'{NOT_RUN} ({len(reduced)} reduced: {finals})'


def show_cell(cell_id: str, seed: int = 0, layers: bool = False) -> None:
    """Print a cell's resolved config, its size, and the commands to run it.

    Args:
        cell_id: Id of the cell.
        seed: Of the training.
        layers: Print the overhead of every layer too.
    """
    cell = find_cell(cell_id)
    checked = check_cell(cell)
    print(cell.resolve().pretty_text)
    print(f'# Table {cell.table}, {cell.row}: paper {paper_result(cell)}')
    print(f'# {checked.cost.parameters:,} parameters')
    print(f'# {checked.cost.multiply_adds:,} multiply-adds')
    _show_overhead(layer_overheads(cell), layers)
    print(training_command(cell, seed))
    print(f'python tools/paper.py record {cell.id} {_work_dir(cell, seed)}')


def _show_overhead(overheads: dict[str, Overhead], layers: bool) -> None:
    if layers:
        for name, o in overheads.items():
            print(f'# {name}: {o.multiplies:,} multiplies, {o.adds:,} adds')
    multiplies = sum(o.multiplies for o in overheads.values())
    adds = sum(o.adds for o in overheads.values())
    print(
        f'# SB adds {multiplies:,} multiplies and {adds:,} adds in '
        f'{len(overheads)} layers (Eq. 10-17)'
    )


def _work_dir(cell: Cell, seed: int) -> str:
    return f'work_dirs/{cell.id}/seed{seed}'


def training_command(cell: Cell, seed: int) -> str:
    """Return the shell command that trains a cell; options may follow."""
    words = ['python', 'tools/train.py', cell.config]
    words += ['--work-dir', _work_dir(cell, seed)]
    words += ['--cfg-options', f'randomness.seed={seed}', *cell.options()]
    return shlex.join(words)


def check_cells(table: int | None) -> None:
    """Print counts beside the printed ones; exit with 1 on a mismatch."""
    cells = select_cells(table)
    bar = track(cells, 'counting', console=Console(stderr=True))
    checked = [check_cell(cell) for cell in bar]
    shown = Table(box=None)
    for name in (
        'cell',
        'parameters',
        'paper (M)',
        'difference (M)',
        '',
        'multiply-adds (M)',
        'paper (M)',
        'difference (M)',
        '',
    ):
        shown.add_column(name, justify='left' if name == 'cell' else 'right')
    for entry in checked:
        shown.add_row(*_checked_row(entry))
    _console().print(shown)
    wrong = [c.cell.id for c in checked if not c.matches]
    print(
        f'{len(checked)} networks; parameters: '
        f'{_summary([c.parameters for c in checked])}; multiply-adds: '
        f'{_summary([c.multiply_adds for c in checked])}'
    )
    if wrong:
        print(f'mismatch: {", ".join(wrong)}')
        sys.exit(1)


def _checked_row(entry: CheckedCell) -> list[str]:
    def numbers(compared: Comparison, form: str) -> list[str]:
        if compared.paper is None:
            return ['', '']
        # No negative zero.
        difference = round(compared.difference, 3) + 0.0
        return [f'{compared.paper:{form}}', f'{difference:+{form}}']

    return [
        entry.cell.id,
        f'{entry.cost.parameters:,}',
        *numbers(entry.parameters, '.3f'),
        _verdict(entry.parameters),
        f'{entry.multiply_adds.ours:.2f}',
        *numbers(entry.multiply_adds, '.2f'),
        _verdict(entry.multiply_adds),
    ]


def _summary(compared: list[Comparison]) -> str:
    printed = [c for c in compared if c.paper is not None]
    equal = sum(c.is_checked and c.matches for c in printed)
    other = sum(not c.is_checked for c in printed)
    text = f'{len(printed)} printed, {equal} as counted here'
    if other:
        text += f', {other} of another network (see docs/results.md)'
    return text


def _verdict(compared: Comparison) -> str:
    if compared.paper is None:
        return ''
    if not compared.is_checked:
        return 'another network'
    return 'ok' if compared.matches else 'MISMATCH'


def record(cell_id: str, work_dir: Path) -> None:
    """Add a finished run to the result records."""
    cell = find_cell(cell_id)
    entry = record_run(cell, work_dir)
    file = append_record(entry)
    kind = 'reduced run' if entry.deviations else 'full recipe'
    result = '/' if entry.final is None else f'{entry.final:.3f} %'
    print(f'{cell.id}: {result} ({kind}) -> {file}')


def report(check: bool, folder: Path = RESULTS) -> None:
    """Write the generated files, or only say which are not up to date.

    Args:
        check: Write nothing, exit with 1 if a file is not up to date.
        folder: Of the records. For another one than the repository's, only
            the page of results is written, into that folder.
    """
    _check_folder(folder)
    page = folder / 'results.md'
    own = _is_own(folder) and repository() is not None
    if not own:
        _check_records(folder)
        if not check:
            _check_page(page)
    results = read_results(folder)
    for sentence in results.refused:
        print(f'left out: {sentence}', file=sys.stderr)
    with Console(stderr=True).status('counting every network'):
        if own:
            files = generate(results)
        else:
            files = {page: results_page(results, findings=False)}
    outdated = stale(files)
    if not check:
        write(files)
    for file in outdated:
        print(f'{"stale" if check else "written"}: {_shown(file)}')
    if not outdated:
        print(f'all {len(files)} files are up to date')
    if check and outdated:
        print(f'run: {report_command(folder)}')
        sys.exit(1)


def _check_records(folder: Path) -> None:
    if not list(folder.glob('*.jsonl')):
        raise UserInputError(
            f'--results {folder} holds no records (*.jsonl): give the '
            'folder that tools/reproduce.py --results wrote.'
        )


def _check_page(page: Path) -> None:
    """Raise if the page would be written over another, or cannot be."""
    if page.is_file() and not is_generated(page):
        raise UserInputError(
            f'{page} was not written by this tool, which would overwrite it: '
            'rename it.'
        )
    if not os.access(page.parent, os.W_OK):
        raise UserInputError(
            f'{page} cannot be written: change the rights of its folder.'
        )


def report_command(folder: Path) -> str:
    """Return the shell command that reports on the records in a folder."""
    words = ['python', 'tools/paper.py', 'report']
    words += [] if _is_own(folder) else ['--results', str(folder)]
    return shlex.join(words)


def _is_own(folder: Path) -> bool:
    return folder.resolve() == RESULTS.resolve()


def _shown(file: Path) -> Path:
    inside = file.is_relative_to(REPOSITORY)
    return file.relative_to(REPOSITORY) if inside else file
