#!/usr/bin/env python
"""Draw a VOC devkit of shapes, the data of the demo."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.datasets.synthetic_voc import make_synthetic_voc
from sb_mm.engine.cli import run_tool


def main() -> None:
    """Draw the devkit."""
    parser = argparse.ArgumentParser(
        description='Draw a VOC devkit of shapes: OUT/VOC2007 with images, '
        'annotations and lists. The same arguments give the same devkit.'
    )
    add = parser.add_argument
    add('--out', required=True, metavar='DIR', help='folder of the devkit')
    add('--images', type=int, default=240, help='in trainval.txt (240)')
    add('--test-images', type=int, default=60, help='in test.txt (60)')
    add('--size', type=int, default=320, help='longer side in pixels (320)')
    add('--seed', type=int, default=0, help='seed of the drawings (0)')
    args = parser.parse_args()
    drawn = make_synthetic_voc(
        args.out, args.images, args.test_images, args.seed, args.size
    )
    state = 'drawn' if drawn else 'already there, nothing to do'
    print(f'{args.out}: {args.images} + {args.test_images} images {state}.')


if __name__ == '__main__':
    run_tool(main)
