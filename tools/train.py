#!/usr/bin/env python
"""Train the model of an mmdet or mmpretrain config."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.engine.cli import add_common_options, parse_arguments, run_tool


def main() -> None:
    """Train; the options are those of mmdet's ``train.py`` and a few more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    add_common_options(parser)
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision (needs a GPU)',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from CHECKPOINT, or from the newest in the work '
        'directory',
    )
    args = parse_arguments(parser)
    # They import the hosts, which takes seconds and may fail.
    from sb_mm.engine.config import load_config
    from sb_mm.engine.runner import train

    train(
        load_config(
            args.config,
            args.cfg_options,
            args.data_root,
            args.work_dir,
            args.launcher,
        ),
        resume=args.resume,
        amp=args.amp,
        auto_scale_lr=args.auto_scale_lr,
        trust=args.trust_checkpoint,
        check=args.check,
    )


if __name__ == '__main__':
    run_tool(main)
