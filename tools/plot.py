#!/usr/bin/env python
"""Draw what attention does in the networks of finished trainings."""

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

    text = 'layer by layer: standard deviations, inactivated channels, '
    text += 'saturated gates, lambda; needs trainings with --cfg-options '
    text += 'default_hooks.attention.type=sb_mm.AttentionStatsHook'
    attention = commands.add_parser('attention', help=text)
    attention.set_defaults(plot='plot_attention')
    text = 'default: the last of each training'
    attention.add_argument('--epoch', type=int, help=text)

    text = "a layer's output against its trunk, point by point"
    shift = commands.add_parser('shift', help=text)
    shift.set_defaults(plot='plot_shift')
    add = shift.add_argument
    add('--layer', help='path in the network; default: the last attention')
    add('--checkpoint', help='default: the newest of each training')
    add('--data-root', help="folder of the data; default: the config's")
    text = 'load a checkpoint even if this can run code from it'
    add('--trust-checkpoint', action='store_true', help=text)

    for name, command in commands.choices.items():
        add = command.add_argument
        add('work_dirs', nargs='+', metavar='WORK_DIR', help='of a training')
        add('--labels', nargs='+', help='names of the trainings in the figure')
        add('--out', help=f'file; default: {name}.png in the first WORK_DIR')
    args = vars(parser.parse_args())
    # It imports the hosts, which takes seconds and may fail.
    from sb_mm.visualization import attention

    print(getattr(attention, args.pop('plot'))(**args))


if __name__ == '__main__':
    run_tool(main)
