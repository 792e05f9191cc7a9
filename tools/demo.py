#!/usr/bin/env python
"""Train, test and show SB-SSDLite on drawn shapes, in a few minutes."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.arguments import check_number
from sb_mm.engine.cli import run_tool


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--out', type=Path, default=Path('work_dirs/demo'), help='folder')
    add('--epochs', type=int, default=24, help='epochs')
    add('--images', type=int, default=240, help='training images')
    add('--seed', type=int, default=0, help='training seed')
    add('--workers', type=int, default=2, help='dataloader workers')
    add(
        '--min-map',
        type=float,
        help='fail below this mAP; if not given, 0.6 from 24 epochs on',
    )
    args = vars(parser.parse_args())
    min_map = args.pop('min_map')
    if min_map is None:
        min_map = 0.6 if args['epochs'] >= 24 else 0
    check_number('--min-map', min_map, 0, 1)
    # It imports the hosts, which takes seconds and may fail.
    from sb_mm.engine.demo import run_demo

    mean = run_demo(**args)['pascal_voc/mAP']
    if mean < min_map:
        sys.exit(f'error: The mAP is {mean:.3f}, below --min-map {min_map}.')


if __name__ == '__main__':
    run_tool(main)
