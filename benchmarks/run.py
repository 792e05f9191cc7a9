#!/usr/bin/env python
"""Measure sb_mm beside the parts that it replaces; print and note ratios."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from pkgutil import resolve_name

# Python puts benchmarks/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Settings
from sb_mm.arguments import check_number
from sb_mm.engine.cli import run_tool
from sb_mm.engine.environment import commit, processor, versions
from sb_mm.errors import UserInputError
from sb_mm.files import write_in_one_step

# Imported one by one: a host or package that is missing leaves out one case.
# Those that may find no data come first.
CASES = {
    'augmentation': 'benchmarks.inputs:augmentation',
    'loading': 'benchmarks.inputs:loading',
    'cifar_input': 'benchmarks.inputs:cifar_input',
    'dynamic_conv': 'benchmarks.dynamic_conv:dynamic_conv',
    'dynamic_conv_memory': 'benchmarks.dynamic_conv:dynamic_conv_memory',
    'training_step': 'benchmarks.training:training_step',
    'cifar_step': 'benchmarks.training:cifar_step',
    'training_memory': 'benchmarks.training:training_memory',
    'device_calls': 'benchmarks.training:device_calls',
    'compiled_kernels': 'benchmarks.training:compiled_kernels',  # minutes
    'detector_step': 'benchmarks.detector:detector_step',
    'inference': 'benchmarks.inference:inference',
}
_IDENTITY = ('what', 'ours', 'other', 'device')


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases; each is in the file when it ends."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parse(argv)
    settings = Settings(
        rounds=1 if args.tiny else args.rounds,
        tiny=args.tiny,
        device=args.device,
        data_root=args.data_root,
        cpu_time=args.cpu_time,
    )
    where = environment(settings, argv)
    console = Console(width=None if sys.stdout.isatty() else 150)
    taken = []
    for name in (name for name in CASES if name in args.only):
        try:
            with console.status(name):
                case = resolve_name(CASES[name])
                rows = [where | asdict(row) for row in case(settings)]
        except ModuleNotFoundError as error:
            console.print(f'{name}: not run: {error}', style='red')
            continue
        taken += rows
        write(rows, args.out)
    console.print(f'{where["machine"]}; {settings.rounds} rounds')
    console.print(table(taken))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--only', nargs='+', choices=CASES, default=list(CASES)
    )
    parser.add_argument('--rounds', type=int, default=Settings.rounds)
    parser.add_argument('--device', default=Settings.device)
    parser.add_argument(
        '--data-root',
        default=Settings.data_root,
        help='folder of VOCdevkit, for augmentation and loading',
    )
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help="this process's time on the CPU, for a machine that others use; "
        'give OMP_NUM_THREADS=1 with it',
    )
    parser.add_argument(
        '--tiny',
        action='store_true',
        help='measure next to nothing, to see that all of it runs',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/performance.json'),
        help='JSON; what it holds of other cases stays',
    )
    args = parser.parse_args(argv)
    check_number('--rounds', args.rounds, 1, integer=True)
    if args.out.is_dir():
        raise UserInputError(f'--out {args.out} is a folder: give a file.')
    if args.cpu_time and (args.device != 'cpu' or 'loading' in args.only):
        raise UserInputError(
            '--cpu-time sees neither a GPU nor dataloader workers: leave it '
            'out, or choose cases other than loading with --only.'
        )
    if args.device != 'cpu' and not torch.cuda.is_available():
        raise UserInputError(
            f'--device {args.device}: PyTorch finds no GPU; leave it out.'
        )
    return args


def environment(settings: Settings, argv: Sequence[str]) -> dict:
    """Return what a number depends on besides the code."""
    kind = f'{processor()}, {os.cpu_count()} cores'
    machine = f'{kind}, {torch.backends.cpu.get_cpu_capability()}'
    if settings.device != 'cpu':
        machine = f'{torch.cuda.get_device_name()}; {machine}'
    return dict(
        device=torch.device(settings.device).type,
        machine=machine,
        command=shlex.join(['python', 'benchmarks/run.py', *argv]),
        commit=commit('benchmarks'),
        date=date.today().isoformat(),
        versions=versions('timm', 'onnx', 'onnxruntime'),
    )


def write(rows: list[dict], path: Path) -> None:
    """Write rows to a file, in place of older ones of the same calls.

    Raises:
        UserInputError: If it is no file of rows.
    """
    try:
        old = json.loads(path.read_text()) if path.is_file() else []
        found = {_identity(row): row for row in [*old, *rows]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserInputError(
            f'{path} is no file of benchmarks: give another --out.'
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ',\n'.join(map(json.dumps, found.values()))
    write_in_one_step(path, f'[\n{lines}\n]\n')


def _identity(row: dict) -> tuple[str, ...]:
    return tuple(row[name] for name in _IDENTITY)


def table(rows: Sequence[dict]) -> Table:
    """Return the rows as a table; what misses its target is red."""
    header = ('what', 'ours', 'other', 'ours / other (quartiles)', 'at most')
    shown = Table(*header, box=None)
    for row in rows:
        low, median, high = row['ratio']
        target = row['target']
        missed = target is not None and median > target
        shown.add_row(
            row['what'],
            f'{row["ours"]} {row["ours_median"]:g} {row["unit"]}',
            f'{row["other"]} {row["other_median"]:g} {row["unit"]}',
            f'{median:.2f} ({low:.2f}-{high:.2f})',
            '' if target is None else f'{target:g}',
            style='red' if missed else None,
        )
    return shown


if __name__ == '__main__':
    run_tool(main)
