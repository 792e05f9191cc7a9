#!/usr/bin/env python
"""Test a checkpoint on the test data of an mmdet or mmpretrain config."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.engine.cli import add_common_options, run_tool


def main() -> None:
    """Test; the options are those of mmdet's ``test.py`` and a few more."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config file')
    add('checkpoint', help='checkpoint file or URL')
    add_common_options(parser)
    add('--out', help='write the predictions to this .pkl')
    add('--show', action='store_true', help='show predictions in a window')
    add('--show-dir', help='write painted images there')
    add('--wait-time', type=float, default=2, help='seconds a window stays')
    args = parser.parse_args()
    # They import the hosts, which takes seconds and may fail.
    from sb_mm.engine.config import load_config
    from sb_mm.engine.runner import test

    folders = args.data_root, args.work_dir
    cfg = load_config(args.config, args.cfg_options, *folders, args.launcher)
    test(
        cfg,
        args.checkpoint,
        out=args.out,
        show=args.show,
        show_dir=args.show_dir,
        wait_time=args.wait_time,
        trust=args.trust_checkpoint,
        check=args.check,
    )


if __name__ == '__main__':
    run_tool(main)
