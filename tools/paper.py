#!/usr/bin/env python
"""The paper's tables: list the cells, show one, check counts, report."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.engine.cli import run_tool
from sb_mm.paper import commands
from sb_mm.paper.records import RESULTS


def parse_args() -> argparse.Namespace:
    """Return the command and its options."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar='COMMAND')

    verb = verbs.add_parser('list', help='the cells and their results')
    verb.add_argument('--table', type=int, help='1-10; all if left out')
    verb.add_argument('--width', type=float, help='such as 0.35')
    verb.add_argument(
        '--results', type=Path, default=RESULTS, help='folder of the records'
    )
    verb.set_defaults(
        run=lambda a: commands.list_cells(a.table, a.width, a.results)
    )

    verb = verbs.add_parser(
        'show', help="a cell's config, and the commands that run it"
    )
    verb.add_argument('cell', help='id, as "list" prints it')
    verb.add_argument(
        '--seed', type=_seed, default=0, help='of the training, 0 or more'
    )
    verb.add_argument(
        '--layers', action='store_true', help='overhead of SB in every layer'
    )
    verb.set_defaults(
        run=lambda a: commands.show_cell(a.cell, a.seed, a.layers)
    )

    verb = verbs.add_parser(
        'check', help='parameters and multiply-adds beside the printed ones'
    )
    verb.add_argument('--table', type=int, help='1-10; all if left out')
    verb.set_defaults(run=lambda a: commands.check_cells(a.table))

    verb = verbs.add_parser(
        'record', help='add a finished run to the result records'
    )
    verb.add_argument('cell', help='id, as "list" prints it')
    verb.add_argument('work_dir', type=Path, help="the run's folder")
    verb.set_defaults(run=lambda a: commands.record(a.cell, a.work_dir))

    verb = verbs.add_parser(
        'report', help='write docs/results.md, the READMEs and the metafiles'
    )
    verb.add_argument(
        '--check',
        action='store_true',
        help='write nothing; exit 1 if a file is not up to date',
    )
    verb.add_argument(
        '--results',
        type=Path,
        default=RESULTS,
        metavar='FOLDER',
        help='of other records: writes FOLDER/results.md only',
    )
    verb.set_defaults(run=lambda a: commands.report(a.check, a.results))
    return parser.parse_args()


def _seed(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(
            f'{text} is not a whole number from 0 to 2**32 - 1'
        )
    return int(text)


def main() -> None:
    """Run the command."""
    args = parse_args()
    args.run(args)


if __name__ == '__main__':
    run_tool(main)
