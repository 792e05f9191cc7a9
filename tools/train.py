#!/usr/bin/env python
"""Train the model of an mmdet or mmpretrain config."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.engine.cli import add_common_options, run_tool


def main() -> None:
    """Train; the options are those of mmdet's ``train.py`` and a few more."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config file')
    add_common_options(parser)
    add('--amp', action='store_true', help='mixed precision, on a GPU')
    add('--auto-scale-lr', action='store_true', help='by the batch size')
    text = 'continue from CHECKPOINT, or from the newest in the work directory'
    add('--resume', nargs='?', const='auto', metavar='CHECKPOINT', help=text)
    args = parser.parse_args()
    # They import the hosts, which takes seconds and may fail.
    from sb_mm.engine.config import load_config
    from sb_mm.engine.runner import train

    folders = args.data_root, args.work_dir
    cfg = load_config(args.config, args.cfg_options, *folders, args.launcher)
    train(
        cfg,
        resume=args.resume,
        amp=args.amp,
        auto_scale_lr=args.auto_scale_lr,
        trust=args.trust_checkpoint,
        check=args.check,
    )


if __name__ == '__main__':
    run_tool(main)
