#!/usr/bin/env python
"""Train, test and show SB-SSDLite on drawn shapes, in a few minutes."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.engine.cli import run_tool
from sb_mm.engine.demo import DemoFailedError, run_demo


def parse_args() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/demo'), help='folder'
    )
    parser.add_argument('--epochs', type=int, default=24, help='epochs')
    parser.add_argument(
        '--images', type=int, default=240, help='training images'
    )
    parser.add_argument('--seed', type=int, default=0, help='training seed')
    parser.add_argument(
        '--workers', type=int, default=2, help='dataloader workers'
    )
    parser.add_argument(
        '--min-map', type=float, default=0.6, help='fail below this mAP'
    )
    return parser.parse_args()


def main() -> None:
    """Run the demo."""
    try:
        run_demo(**vars(parse_args()))
    except DemoFailedError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    run_tool(main)
