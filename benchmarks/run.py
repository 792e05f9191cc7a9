#!/usr/bin/env python
"""Measure sb_mm beside the parts that it replaces; print and note ratios."""

import argparse
import json
import multiprocessing
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from time import monotonic

# Python puts benchmarks/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Rows, Settings
from sb_mm.arguments import check_number
from sb_mm.engine.cli import run_tool
from sb_mm.engine.environment import commit, hardware, versions
from sb_mm.errors import UserInputError
from sb_mm.files import write_in_one_step

# Each in which module. Those that may find no data come first.
CASES = dict(
    augmentation='inputs',
    loading='inputs',
    cifar_input='inputs',
    dynamic_conv='dynamic_conv',
    training_step='training',
    cifar_step='training',
    training_loop='training',
    training_memory='training',
    device_calls='training',
    detector_step='training',
    inference='inference',
)
# Only if asked for: they need a GPU, or minutes for a compiler.
MORE = dict(
    cifar_channels_last='training',
    cifar_graphs='training',
    cifar_compiled='training',
    detector_bfloat16='training',
    detector_graphs='training',
    detector_compiled='training',
    compiled_kernels='training',
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases; a row is shown and in the file when it is measured."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parse(argv)
    settings = Settings(
        1 if args.tiny else args.rounds, args.tiny, args.device, args.data_root
    )
    command = shlex.join(['python', 'benchmarks/run.py', *argv])
    console = Console(width=None if sys.stdout.isatty() else 150)
    for name in args.only:
        rows = []
        try:
            for row in _rows(name, settings, args.limit):
                rows.append({**row, 'command': command})
                write(rows[-1:], args.out)
        except (ModuleNotFoundError, ChildError) as error:
            console.print(f'{name}: not run: {error}', style='red')
        if rows:
            console.print(table(rows))


class ChildError(Exception):
    """A case ended without its last row."""


def _rows(name: str, settings: Settings, limit: float | None) -> Rows:
    """Yield a case's rows; with a limit, from a process of its own.

    Modules are loaded before, once for all cases.
    """
    case = resolve_name(f'benchmarks.{(CASES | MORE)[name]}:{name}')
    if limit is None:
        yield from _measure(case, settings)
        return
    fork = multiprocessing.get_context('fork')
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_send, args=(sender, case, settings))
    child.start()
    sender.close()
    end = monotonic() + limit
    try:
        while receiver.poll(max(0, end - monotonic())):
            yield receiver.recv()
        raise ChildError(f'longer than {limit:g} s')
    except EOFError:
        child.join()
        if child.exitcode:
            raise ChildError(f'exit code {child.exitcode}') from None
    finally:
        child.kill()


def _send(sender: Connection, *args) -> None:
    for row in _measure(*args):
        sender.send(row)


def _measure(case: Callable[[Settings], Rows], settings: Settings) -> Rows:
    torch.backends.cudnn.benchmark = True  # as in our configs
    where = dict(
        device=torch.device(settings.device).type,
        machine=f'{hardware()}, {os.cpu_count()} cores',
        commit=commit('benchmarks'),
        date=date.today().isoformat(),
        versions=versions('timm', 'onnx', 'onnxruntime'),
    )
    for row in case(settings):
        yield {**where, **row}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=formatter
    )
    add = parser.add_argument
    add('--only', nargs='+', choices=CASES | MORE, default=list(CASES))
    add('--rounds', type=int, default=Settings.rounds, help='values of each')
    add('--device', default=Settings.device)
    add('--data-root', default=Settings.data_root, help='of VOCdevkit')
    add('--limit', type=float, help='seconds of a case')
    add('--tiny', action='store_true', help='see only that all of it runs')
    out = Path('work_dirs/performance.json')
    add('--out', type=Path, default=out, help='what it holds of others stays')
    args = parser.parse_args(argv)
    check_number('--rounds', args.rounds, 1, integer=True)
    if args.out.is_dir():
        raise UserInputError(f'--out {args.out} is a folder: give a file.')
    if args.device != 'cpu' and not torch.cuda.is_available():
        raise UserInputError(
            f'--device {args.device}: PyTorch finds no GPU; leave it out.'
        )
    return args


def write(rows: Sequence[dict], path: Path) -> None:
    """Write rows to a file, in place of older ones of the same calls.

    Raises:
        UserInputError: If it is no file of rows.
    """
    identity = ('what', 'ours', 'other', 'device')
    try:
        old = json.loads(path.read_text()) if path.is_file() else []
        found = {tuple(row[n] for n in identity): row for row in [*old, *rows]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserInputError(
            f'{path} is no file of benchmarks: give another --out.'
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ',\n'.join(map(json.dumps, found.values()))
    write_in_one_step(path, f'[\n{lines}\n]\n')


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
