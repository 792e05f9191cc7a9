#!/usr/bin/env python
"""Measure sb_mm beside the parts that it replaces, and print the ratios."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Python puts benchmarks/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import results, targets
from benchmarks.cifar_pipeline import cifar_pipeline
from benchmarks.detector import detector_loop, detector_step
from benchmarks.distribution import distribution
from benchmarks.dynamic_conv import dynamic_conv, dynamic_conv_memory
from benchmarks.inference import inference
from benchmarks.measurement import Measurement, Settings
from benchmarks.pipeline import augmentation, check_data, loading
from benchmarks.results import Result
from benchmarks.scaling import scaling
from benchmarks.side_by_side import side_by_side
from benchmarks.training import (
    calls,
    cifar_step,
    training_memory,
    training_step,
)
from sb_mm.arguments import check_number
from sb_mm.engine.cli import run_tool
from sb_mm.errors import UserInputError

BENCHMARKS: dict[str, Callable[[Settings], Iterator[Measurement]]] = dict(
    augmentation=augmentation,
    distribution=distribution,
    loading=loading,
    dynamic_conv=dynamic_conv,
    dynamic_conv_memory=dynamic_conv_memory,
    training_step=training_step,
    calls=calls,
    cifar_step=cifar_step,
    cifar_pipeline=cifar_pipeline,
    side_by_side=side_by_side,
    training_memory=training_memory,
    inference=inference,
    detector_step=detector_step,
    detector_loop=detector_loop,
    scaling=scaling,
)
# Those that --device is for; what they measure on a GPU has its own place.
_ON_DEVICE = (
    'cifar_pipeline',
    'side_by_side',
    'detector_step',
    'detector_loop',
)
_DEVICES = ('cpu', 'cuda')
_NEED_DATA = ('augmentation', 'loading')  # and detector_loop, on a GPU


def parse_args() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--only', nargs='+', choices=BENCHMARKS, help='run these alone'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/performance.json'),
        metavar='FILE',
        help='JSON; what it holds of other benchmarks stays '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--data-root',
        default=Settings.data_root,
        help='folder of VOCdevkit (default: %(default)s)',
    )
    parser.add_argument(
        '--rounds',
        type=int,
        default=Settings.rounds,
        help='values of each contender (default: %(default)s)',
    )
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument(
        '--device',
        default=Settings.device,
        help='of detector_step, detector_loop, cifar_pipeline, side_by_side '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--tiny',
        action='store_true',
        help='measure next to nothing, to see that all of it runs',
    )
    return parser.parse_args()


def main() -> None:
    """Run the benchmarks; each is in the file when it ends."""
    args = parse_args()
    settings = _settings(args)
    names = args.only or list(BENCHMARKS)
    if _need_data(names, settings):
        check_data(settings)
    found = results.read(args.out)
    where = results.environment(settings)  # the code as it is loaded now
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for name in names:
        result = _run(name, settings, where, console)
        found[_key(name, settings.device)] = result
        results.write(_sorted(found), args.out)
    console.print(f'{results.machine(where)}; {results.packages(where)}')
    _print(found, [_key(n, settings.device) for n in names], console)


def _key(name: str, device: str) -> str:
    return results.key(name, device if name in _ON_DEVICE else 'cpu')


def keys() -> list[str]:
    """Return all names in a file of results, in its order."""
    return [_key(n, d) for n in BENCHMARKS for d in _DEVICES]


def _sorted(found: dict[str, Result]) -> dict[str, Result]:
    return {key: found[key] for key in keys() if key in found}


def _need_data(names: list[str], settings: Settings) -> bool:
    loop = 'detector_loop' in names and (
        settings.tiny or settings.device.startswith('cuda')
    )
    return loop or bool(set(names) & set(_NEED_DATA))


def _settings(args: argparse.Namespace) -> Settings:
    check_number('--rounds', args.rounds, 1, integer=True)
    check_number('--threads', args.threads, 1, integer=True)
    if args.out.is_dir():
        raise UserInputError(f'--out {args.out} is a folder: give a file.')
    if args.device.split(':')[0] not in _DEVICES:
        raise UserInputError(
            f'--device {args.device}: give cpu, cuda or such as cuda:1.'
        )
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        raise UserInputError(
            f'--device {args.device}: PyTorch finds no GPU; leave it out.'
        )
    rounds = 1 if args.tiny else args.rounds
    return Settings(rounds, args.tiny, args.data_root, args.device)


def _run(
    name: str, settings: Settings, where: dict, console: Console
) -> Result:
    start = time.monotonic()
    settings.notes.clear()
    measurements = []
    with console.status(name):
        for measurement in BENCHMARKS[name](settings):
            measurements.append(measurement)
    console.print(f'{name}: {time.monotonic() - start:.0f} s')
    for note in settings.notes:
        console.print(f'  {note}')
    return Result(where, list(settings.notes), measurements)


def _print(
    found: dict[str, Result], names: list[str], console: Console
) -> None:
    shown = Table(*targets.HEADER, box=None)
    rows = zip(targets.TARGETS, targets.table(found), strict=True)
    for target, row in rows:
        if target.benchmark in names:
            shown.add_row(*(cell.replace('*', '') for cell in row))
    console.print(shown)


if __name__ == '__main__':
    run_tool(main)
