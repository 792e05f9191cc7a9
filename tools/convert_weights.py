#!/usr/bin/env python
"""Convert weights of torchvision or timm into a checkpoint of ours."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.convert_weights import convert_file, summary
from sb_mm.engine.cli import run_tool


def main() -> None:
    """Convert, and say how to use the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    text = "file or URL of torchvision's MobileNetV2, MNASNet or "
    text += "ShuffleNetV2, or of timm's mobilenetv2_* or mnasnet_*"
    add('src', metavar='SRC', help=text)
    add('dst', metavar='DST', help='checkpoint to write')
    add('--force', action='store_true', help='replace DST if it exists')
    text = 'read SRC even if it needs more than tensors; this can run code '
    text += 'from it'
    add('--trust-checkpoint', action='store_true', help=text)
    args = parser.parse_args()
    converted = convert_file(
        args.src, args.dst, force=args.force, trust=args.trust_checkpoint
    )
    print(summary(converted, args.dst))


if __name__ == '__main__':
    run_tool(main)
