"""The file of the results: what was measured, on what."""

import json
import os
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch

from sb_mm.engine.hooks.run_info import commit, processor, versions
from sb_mm.errors import UserInputError, first_line
from sb_mm.files import write_in_one_step

from .distribution import TESTS
from .measurement import Measurement, Settings

RESULTS = Path(__file__).resolve().parents[1] / 'results/performance.json'
_MORE_PACKAGES = ('timm', 'onnx', 'onnxruntime')


@dataclass(frozen=True)
class Result:
    """One benchmark's measurements.

    Attributes:
        environment: Machine, versions, command, commit and date.
        notes: What was left out, and why.
        measurements: In the order in which they were taken.
    """

    environment: dict
    notes: list[str]
    measurements: list[Measurement]


def environment(settings: Settings) -> dict:
    """Return what a number depends on besides the code."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return dict(
        processor=processor(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cores=os.cpu_count(),
        gpu=gpu,
        memory_gib=round(_memory() / 2**30),
        versions=versions(*_MORE_PACKAGES),
        tiny=settings.tiny,
        command=shlex.join(['python', 'benchmarks/run.py', *sys.argv[1:]]),
        commit=commit('benchmarks', str(TESTS)),
        date=date.today().isoformat(),
    )


def key(benchmark: str, device: str) -> str:
    """Return under which name the file holds what was measured.

    A GPU's numbers stand beside those of a CPU, and do not replace them.

    Args:
        benchmark: Its name.
        device: On which it ran, as PyTorch calls it.
    """
    kind = torch.device(device).type
    return benchmark if kind == 'cpu' else f'{benchmark}_{kind}'


def machine(environment: dict) -> str:
    """Return the machine of an environment in words."""
    gpu = environment['gpu']
    return (
        f'{environment["processor"]}, {environment["cores"]} cores, '
        f'{environment["instructions"]}, {environment["memory_gib"]} GiB'
        f'{f"; {gpu}" if gpu else ""}'
    )


def packages(environment: dict) -> str:
    """Return the versions of an environment in words."""
    return ', '.join(f'{k} {v}' for k, v in environment['versions'].items())


def _memory() -> int:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def read(path: Path = RESULTS) -> dict[str, Result]:
    """Return the results of a file, by benchmark; none if there is no file.

    Raises:
        UserInputError: If it is no file of results.
    """
    if not path.is_file():
        return {}
    try:
        return {k: _result(v) for k, v in json.loads(path.read_text()).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserInputError(
            f'{path} is no file of results ({first_line(error)}): give '
            'another --out.'
        ) from error


def _result(content: dict) -> Result:
    taken = [Measurement(**m) for m in content['measurements']]
    return Result(content['environment'], content['notes'], taken)


def write(results: dict[str, Result], path: Path) -> None:
    """Write a file of results, in one step."""
    write_in_one_step(path, _json(results))


def _json(results: dict[str, Result]) -> str:
    """Return JSON with one line a measurement, so that versions compare."""
    parts = [f'{json.dumps(k)}: {_entry(v)}' for k, v in results.items()]
    return '{\n' + ',\n'.join(parts) + '\n}\n'


def _entry(result: Result) -> str:
    lines = _lines(asdict(m) for m in result.measurements)
    return (
        f'{{"environment": {json.dumps(result.environment)},\n'
        f'"notes": {json.dumps(result.notes)},\n'
        f'"measurements": [\n{lines}\n]}}'
    )


def _lines(entries: Iterable[dict]) -> str:
    return ',\n'.join(map(json.dumps, entries))
