#!/usr/bin/env python
"""Print gradient and gates of the paper's networks before the first step."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from sb_mm.engine.cli import Options, run_tool
from sb_mm.paper.cells import find_cell
from sb_mm.paper.study import add_starts, check_out
from sb_mm.reproduce.recipe import Recipe
from sb_mm.reproduce.start import documented, measure_start


def parse_args() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'cells', nargs='+', help='ids of tools/paper.py list, of classifiers'
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--data-root', help='folder of the data')
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, default={},
        help='further settings of the config, key=value',
    )  # fmt: skip
    parser.add_argument(
        '--out', type=Path, metavar='FILE', help='JSON to add the numbers to'
    )
    return parser.parse_args()


def main() -> None:
    """Measure, and print a table."""
    args = parse_args()
    recipe = Recipe(options=args.cfg_options, data_root=args.data_root)
    table = Table('cell', 'norm of the gradient', 'spread of a gate', box=None)
    cells = [find_cell(name) for name in args.cells]
    if args.out:  # before the work, not after it
        check_out(args.out)
    for cell in cells:
        start = measure_start(cell, recipe, args.seeds)
        if args.out:
            entry = documented(cell, recipe, args.seeds, start)
            add_starts([entry], args.out)
        spread = '-' if start.spread is None else f'{start.spread:.4f}'
        table.add_row(cell.id, f'{start.gradient:.4g}', spread)
    Console().print(table)


if __name__ == '__main__':
    run_tool(main)
