#!/usr/bin/env python
"""Export a classifier or detector to ONNX, and check the file."""

import argparse
import sys
from pathlib import Path

# Python puts tools/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.deploy.agreement import ExportFailedError
from sb_mm.deploy.export import export
from sb_mm.engine.cli import add_common_options, run_tool
from sb_mm.engine.config import load_config


def main() -> None:
    """Export, and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config file')
    add('checkpoint', nargs='?', help='file; random weights if left out')
    add('--out', metavar='FILE', help='default: <config>.onnx, here')
    add('--nms', action='store_true', help='suppress boxes inside the file')
    add('--this-cpu', action='store_true', help='fastest, on such CPUs only')
    text = 'test images on which the file is compared with PyTorch'
    add('--check-images', type=int, default=8, metavar='N', help=text)
    add('--evaluate', action='store_true', help='print the metrics of both')
    add_common_options(parser, check=False)
    args = parser.parse_args()
    cfg = load_config(
        args.config, args.cfg_options, args.data_root, args.work_dir
    )
    out = f'{Path(args.config).stem}.onnx' if args.out is None else args.out
    try:
        for line in export(
            cfg,
            args.checkpoint,
            out,
            nms=args.nms,
            this_cpu=args.this_cpu,
            check_images=args.check_images,
            evaluate=args.evaluate,
            trust=args.trust_checkpoint,
        ):
            print(line, flush=True)
    except ExportFailedError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    run_tool(main)
