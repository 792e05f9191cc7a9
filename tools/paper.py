#!/usr/bin/env python
"""The paper's tables: list and train the cells, and report."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.engine.cli import Options, run_tool
from sb_mm.paper import commands


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command and its options."""
    # A shortened option would not be found again in a script for Slurm.
    options = dict(allow_abbrev=False)
    parser = argparse.ArgumentParser(description=__doc__, **options)
    verbs = parser.add_subparsers(required=True, metavar='COMMAND')
    for name, run, *groups in (
        ('list', commands.list_cells, _add_selection),
        ('train', commands.train_cells, _add_selection, _add_training),
        ('report', commands.report),
    ):
        verb = verbs.add_parser(name, help=run.__doc__, **options)
        for group in groups:
            group(verb)
        add, text = verb.add_argument, 'folder of the records (%(default)s)'
        add('--results', type=Path, default=commands.RESULTS, help=text)
        verb.set_defaults(run=run)
    return parser.parse_args(argv)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    several = dict(nargs='+', action='extend', default=[])
    parser.add_argument('--table', type=int, help='1-10', **several)
    parser.add_argument('--width', type=float, help='as 0.35', **several)
    names = {n.lower(): n for n in ('static', 'SE', 'SB', 'DyConv')}
    parser.add_argument(
        '--attention', type=lambda text: names.get(text.lower(), text),
        help=', '.join(names.values()), **several,
    )  # fmt: skip
    parser.add_argument('--cells', help='ids of "list"', **several)


def _add_training(parser: argparse.ArgumentParser) -> None:
    add, flag = parser.add_argument, dict(action='store_true')
    add('--seeds', type=int, nargs='+', default=[0])
    add('--epochs', type=int, help="instead of the paper's")
    text = 'settings that differ from the paper, key=value'
    add('--cfg-options', nargs='+', action=Options, default={}, help=text)
    add('--data-root', type=Path, help='folder of the data')
    add('--channels-last', help="memory format of CIFAR-10's batches", **flag)
    add(
        '--compile', nargs='?', const='default', metavar='MODE',
        choices=['default', 'reduce-overhead', 'max-autotune'],
        help='torch.compile; reduce-overhead is with CUDA graphs',
    )  # fmt: skip
    where = parser.add_mutually_exclusive_group().add_argument
    where('--jobs', type=int, help='at a time; one a GPU if left out')
    where(
        '--ray', nargs='?', const='auto', metavar='ADDRESS',
        help='as tasks of this Ray cluster; auto: the one of this machine',
    )  # fmt: skip
    where('--slurm', help='print the command for Slurm', **flag)
    where('--dry-run', help='list the jobs, train nothing', **flag)
    add('--only', type=int, metavar='N', help='only job N, from 0')
    add('--cpus-per-job', type=int, default=1, help='of --ray, --slurm')
    text = 'of --ray, --slurm; if left out 1, but 0 if Ray has none'
    add('--gpus-per-job', type=float, help=text)
    text = 'folder of logs and checkpoints (%(default)s)'
    add('--out', type=Path, default=Path('work_dirs/paper'), help=text)


def main() -> None:
    """Run the command."""
    args = parse_args()
    sys.exit(args.run(args))


if __name__ == '__main__':
    run_tool(main)
