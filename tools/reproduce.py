#!/usr/bin/env python
"""Train the cells of the paper's tables and record the results."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.engine.cli import Options, run_tool
from sb_mm.paper.records import RESULTS
from sb_mm.reproduce import commands
from sb_mm.reproduce.cluster import Share
from sb_mm.reproduce.recipe import Recipe
from sb_mm.reproduce.slurm import array_script

_ATTENTION = ('static', 'SE', 'SB', 'DyConv')
_SPELLINGS = {name.lower(): name for name in _ATTENTION}


def parse_args() -> argparse.Namespace:
    """Return the options."""
    # A shortened option would not be found again in the script of Slurm.
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    _add_which(parser.add_argument_group('which runs'))
    _add_how(parser.add_argument_group('how'))
    _add_where(parser.add_argument_group('where'))
    return parser.parse_args()


def _add_which(group: argparse._ArgumentGroup) -> None:
    lists = dict(nargs='+', action='extend')
    group.add_argument(
        '--table', type=int, default=[], help='numbers, 1-10', **lists
    )
    group.add_argument(
        '--width',
        type=float,
        default=[],
        help="such as 0.35, of the tables' cells",
        **lists,
    )
    group.add_argument(
        '--attention', default=[], choices=list(_ATTENTION), **lists,
        type=lambda text: _SPELLINGS.get(text.lower(), text),
    )  # fmt: skip
    group.add_argument(
        '--cells', default=[], help='ids of tools/paper.py list', **lists
    )
    group.add_argument('--seeds', type=int, help='0 if left out', **lists)
    group.add_argument(
        '--only', type=int, metavar='N', help='the N-th of them, from 0'
    )


def _add_how(group: argparse._ArgumentGroup) -> None:
    group.add_argument('--epochs', type=int, help="instead of the paper's")
    group.add_argument('--data-root', help='folder of the data')
    group.add_argument(
        '--host-loader', action='store_true',
        help="read CIFAR-10 with mmpretrain's loader, not on the device",
    )  # fmt: skip
    group.add_argument(
        '--channels-last', action='store_true',
        help='memory format of the batches, with the data on the device',
    )  # fmt: skip
    group.add_argument(
        '--compile', nargs='?', const='default', metavar='MODE',
        choices=['default', 'reduce-overhead', 'max-autotune'],
        help='torch.compile; reduce-overhead is with CUDA graphs',
    )  # fmt: skip
    group.add_argument('--amp', action='store_true', help='bfloat16 (GPU)')
    group.add_argument(
        '--cfg-options', nargs='+', action=Options, default={},
        help='further settings of the config, key=value',
    )  # fmt: skip


def _add_where(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--jobs', type=int, help='processes at a time; one a GPU if left out'
    )
    group.add_argument(
        '--ray', nargs='?', const='auto', metavar='ADDRESS',
        help='as tasks of this Ray cluster; auto: the one of this machine',
    )  # fmt: skip
    group.add_argument(
        '--cpus-per-run', type=int, help='with --ray, --slurm; 1 if left out'
    )
    group.add_argument(
        '--gpus-per-run', type=float,
        help='with --ray, --slurm; if left out 1, but 0 if Ray has none',
    )  # fmt: skip
    group.add_argument(
        '--retries', type=int, default=1,
        help='how often a run that failed is started again (%(default)s)',
    )  # fmt: skip
    group.add_argument(
        '--slurm', action='store_true', help='print a job array, run nothing'
    )
    group.add_argument(
        '--dry-run', action='store_true', help='list the runs, run nothing'
    )
    group.add_argument(
        '--out', type=Path, default=Path('work_dirs/reproduce'),
        help='folder of logs and checkpoints',
    )  # fmt: skip
    group.add_argument(
        '--results', type=Path, default=RESULTS, help='folder of the records'
    )


def main() -> None:
    """Run the command."""
    a = parse_args()
    commands.check_options(vars(a))
    selection = commands.Selection(
        a.table, a.width, a.attention, a.cells, a.seeds or [0]
    )
    recipe = Recipe(
        a.epochs,
        a.cfg_options,
        # The processes may start in another folder, on Ray's nodes.
        a.data_root and str(Path(a.data_root).expanduser().resolve()),
        not a.host_loader,
        a.channels_last,
        a.compile,
        a.amp,
    )
    share = Share(
        1 if a.cpus_per_run is None else a.cpus_per_run, a.gpus_per_run
    )
    engine = commands.Engine(a.jobs, a.ray, share, a.retries)
    runs = commands.plan(selection, recipe, a.out.resolve(), a.only)
    if a.slurm:
        script = array_script(sys.argv[1:], len(runs), share.cpus, share.gpus)
        print(script, end='')
    elif a.dry_run:
        commands.show(runs, a.results)
    else:
        sys.exit(commands.reproduce(runs, a.results, engine))


if __name__ == '__main__':
    run_tool(main)
