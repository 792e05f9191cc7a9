#!/usr/bin/env python
"""Measure sb_mm beside the parts that it replaces; print and note ratios."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from pkgutil import resolve_name

# Python puts benchmarks/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import torch

from benchmarks.measure import Settings
from sb_mm.arguments import check_number
from sb_mm.engine.cli import run_tool
from sb_mm.engine.environment import commit, hardware, versions
from sb_mm.files import check_writable

# That which may find no data comes last.
CASES = [
    *('cifar_input', 'training_step', 'cifar_step', 'training_loop'),
    *('device_calls', 'detector_step', 'inference', 'augmentation'),
]
# Only if asked for: they need a GPU, or minutes for a compiler.
MORE = [
    *('cifar_graphs', 'cifar_compiled', 'detector_graphs'),
    *('detector_compiled', 'compiled_kernels'),
]
# Of the cases that are not in training.py.
MODULES = dict(
    augmentation='inputs', cifar_input='inputs', inference='inference'
)
LINE = (
    '{what}: {ours} {ours_median} {unit}, {other} {other_median} {unit}, '
    'ratio (quartiles) {ratio}, at most {target}'
)
# As one of many processes: waiting threads would take each other's cores.
ONE_THREAD = ('augmentation', 'inference')


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases; a row is shown and in the file when it is measured."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parse(argv)
    about = dict(
        device=torch.device(args.device).type,
        machine=f'{hardware()}, {os.cpu_count()} cores',
        command=shlex.join(['python', 'benchmarks/run.py', *argv]),
        commit=commit('benchmarks'),
        date=date.today().isoformat(),
        versions=versions('timm', 'onnx', 'onnxruntime'),
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    check_writable(args.out, '.jsonl')
    settings = Settings(
        1 if args.tiny else args.rounds, args.tiny, args.device, args.data_root
    )
    # As in our configs.
    torch.backends.cudnn.benchmark = True
    cv2.setNumThreads(0)
    threads = torch.get_num_threads()
    for name in args.only:
        try:
            module = MODULES.get(name, 'training')
            case = resolve_name(f'benchmarks.{module}:{name}')
        except ModuleNotFoundError as error:
            print(f'{name}: not run: {error}')
            continue
        torch.set_num_threads(1 if name in ONE_THREAD else threads)
        for row in case(settings):
            print(LINE.format(**row), flush=True)
            with args.out.open('a') as file:
                file.write(json.dumps({**about, **row}) + '\n')


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=formatter
    )
    add = parser.add_argument
    add('--only', nargs='+', choices=CASES + MORE, default=CASES)
    add('--rounds', type=int, default=9, help='values of each')
    add('--device', default='cpu', help='such as cuda')
    add('--data-root', default='data/VOCdevkit', help='of VOCdevkit')
    add('--tiny', action='store_true', help='see only that all of it runs')
    out = Path('work_dirs/performance.jsonl')
    add('--out', type=Path, default=out, help='rows are added to this file')
    args = parser.parse_args(argv)
    check_number('--rounds', args.rounds, 1, integer=True)
    return args


if __name__ == '__main__':
    run_tool(main)
