"""What ``tools/paper.py`` does."""

import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from .cells import Cell, find_cell, select_cells
from .check import CheckedCell, check_cell, layer_overheads
from .records import append_record, read_records, record_run, summarize
from .report import generate, our_result, paper_result, stale, write


def _console() -> Console:
    """Return a console that does not fold tables that go to a file."""
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, soft_wrap=True)


def list_cells(table: int | None, width: float | None) -> None:
    """Print the cells with their configs and what was measured so far."""
    cells = select_cells(table, width)
    records = read_records()
    shown = Table('cell', 'config and overrides', 'paper', 'here', box=None)
    for cell in cells:
        runs = summarize(cell, records)
        what = ' '.join([cell.config, *cell.options()])
        shown.add_row(cell.id, what, paper_result(cell), our_result(runs))
    _console().print(shown)


def show_cell(cell_id: str) -> None:
    """Print a cell's resolved config, its size, and the commands to run it."""
    cell = find_cell(cell_id)
    checked = check_cell(cell)
    print(cell.resolve().pretty_text)
    print(f'# Table {cell.table}, {cell.row}: paper {paper_result(cell)}')
    print(f'# {checked.cost.parameters:,} parameters')
    print(f'# {checked.cost.multiply_adds:,} multiply-adds')
    if cell.attention == 'SB':
        layers = layer_overheads(cell).values()
        multiplies = sum(o.multiplies for o in layers)
        adds = sum(o.adds for o in layers)
        print(
            f'# SB adds {multiplies:,} multiplies and {adds:,} adds in '
            f'{len(layers)} layers (Eq. 10-17)'
        )
    print(training_command(cell))
    print(f'python tools/paper.py record {cell.id} {_work_dir(cell)}')


def _work_dir(cell: Cell) -> str:
    return f'work_dirs/{cell.id}'


def training_command(cell: Cell) -> str:
    """Return the shell command that trains a cell; options may follow."""
    words = ['python', 'tools/train.py', cell.config]
    words += ['--work-dir', _work_dir(cell)]
    if cell.overrides:
        words += ['--cfg-options', *cell.options()]
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
    counts = [c for c in checked if c.parameters.paper is not None]
    print(
        f'{len(checked)} networks; {len(counts)} printed parameter counts, '
        f'{sum(c.parameters.matches for c in counts)} equal to the last '
        f'printed digit'
    )
    if wrong:
        print(f'mismatch: {", ".join(wrong)}')
        sys.exit(1)


def _checked_row(entry: CheckedCell) -> list[str]:
    def numbers(compared: object, form: str) -> list[str]:
        if compared.paper is None:
            return ['', '']
        # No negative zero.
        difference = round(compared.difference, 3) + 0.0
        return [f'{compared.paper:{form}}', f'{difference:+{form}}']

    return [
        entry.cell.id,
        f'{entry.cost.parameters:,}',
        *numbers(entry.parameters, '.3f'),
        f'{entry.multiply_adds.ours:.2f}',
        *numbers(entry.multiply_adds, '.2f'),
        _verdict(entry),
    ]


def _verdict(entry: CheckedCell) -> str:
    counts = (entry.parameters, entry.multiply_adds)
    if not any(c.is_checked for c in counts):
        return 'nothing printed'
    return 'ok' if entry.matches else 'MISMATCH'


def record(cell_id: str, work_dir: Path) -> None:
    """Add a finished run to the result records."""
    cell = find_cell(cell_id)
    parameters = check_cell(cell).cost.parameters
    entry = record_run(cell, work_dir, parameters)
    file = append_record(entry)
    kind = 'reduced run' if entry.deviations else 'full recipe'
    print(f'{cell.id}: {entry.final:.3f} % ({kind}) -> {file}')


def report(check: bool) -> None:
    """Write the generated files, or only say which are not up to date."""
    files = generate()
    outdated = stale(files)
    if not check:
        write(files)
    for name in outdated:
        print(f'{"stale" if check else "written"}: {name}')
    if check and outdated:
        print('run: python tools/paper.py report')
        sys.exit(1)
