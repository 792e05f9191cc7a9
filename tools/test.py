#!/usr/bin/env python
"""Test a checkpoint on the test data of an mmdet or mmpretrain config."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.engine.cli import add_common_options, parse_arguments, run_tool
from sb_mm.engine.run import test


def parse_args() -> argparse.Namespace:
    """Return the options, those of mmdet's ``test.py`` and a few more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    add_common_options(parser)
    parser.add_argument('--out', help='write the predictions to this .pkl')
    parser.add_argument(
        '--show', action='store_true', help='show predictions in a window'
    )
    parser.add_argument('--show-dir', help='write painted images there')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds a window stays'
    )
    return parse_arguments(parser)


def main() -> None:
    """Test."""
    test(parse_args())


if __name__ == '__main__':
    run_tool(main)
