#!/usr/bin/env python
"""Draw what attention does in the networks of finished runs."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.engine.cli import run_tool


def main() -> None:
    """Draw, and print where the figure is."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    attention = commands.add_parser(
        'attention',
        help='layer by layer: standard deviations, inactivated channels, '
        'saturated gates, lambda; needs runs with --cfg-options '
        'default_hooks.attention.type=sb_mm.AttentionStatsHook',
    )
    attention.set_defaults(plot='plot_attention')
    attention.add_argument(
        '--epoch', type=int, help='default: the last of each run'
    )

    shift = commands.add_parser(
        'shift', help="a layer's output against its trunk, point by point"
    )
    shift.set_defaults(plot='plot_shift')
    shift.add_argument(
        '--layer', help='path in the network; default: the last attention'
    )
    shift.add_argument('--checkpoint', help='default: the newest of each run')
    shift.add_argument(
        '--data-root', help="folder of the data; default: the config's"
    )
    shift.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load a checkpoint even if this can run code from it',
    )

    for name, command in commands.choices.items():
        command.add_argument(
            'work_dirs', nargs='+', metavar='WORK_DIR', help='of a run'
        )
        command.add_argument(
            '--labels', nargs='+', help='names of the runs in the figure'
        )
        command.add_argument(
            '--out', help=f'file; default: {name}.png in the first WORK_DIR'
        )
    args = vars(parser.parse_args())
    # It imports the hosts, which takes seconds and may fail.
    from sb_mm.visualization import attention

    print(getattr(attention, args.pop('plot'))(**args))


if __name__ == '__main__':
    run_tool(main)
