#!/usr/bin/env python
"""Bring PASCAL VOC 2007 and 2012 into a devkit folder."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.datasets.download_voc import VOC_YEARS, prepare_voc
from sb_mm.engine.cli import run_tool

DESCRIPTION = """\
Bring PASCAL VOC into OUT/VOC2007 (trainval, test) and OUT/VOC2012 (trainval).
Downloads 2.9 GB, goes on where an earlier call stopped, checks checksums,
leaves nothing half-unpacked. A year that is there is checked and left."""


def main() -> None:
    """Bring the years."""
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    add = parser.add_argument
    add('--out', default='data/VOCdevkit', help='the devkit (%(default)s)')
    add('--from-dir', help='no download: a folder with the official tar files')
    add('--years', type=int, nargs='+', default=VOC_YEARS, choices=VOC_YEARS)
    args = parser.parse_args()
    years = {year: VOC_YEARS[year] for year in args.years}
    prepare_voc(args.out, years, args.from_dir)


if __name__ == '__main__':
    run_tool(main)
