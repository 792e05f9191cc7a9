"""Builds mmcv with its C++ operators once, and keeps the wheel."""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from . import SetupError
from .checks import BUILD_GIB, check_compiler, check_room
from .commands import Runner
from .plan import Plan

# Measured on two cores: 8.6 to 26.3 minutes.
BUILD_CORE_MINUTES = (17, 53)
GIB_PER_JOB = 1.5  # what one compiler of torch's headers takes

PROBE = (
    'import torch\n'
    'from torch.utils.cpp_extension import CUDA_HOME\n'
    'print(int(torch.cuda.is_available()), int(CUDA_HOME is not None))\n'
)


def jobs() -> int:
    """Return how many compilers may run, by cores and by memory."""
    if os.environ.get('MAX_JOBS', '').isdigit():
        return int(os.environ['MAX_JOBS'])
    if hasattr(os, 'sched_getaffinity'):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    return max(1, min(cores, int(memory / GIB_PER_JOB)))


def find_variant(plan: Plan) -> str:
    """Return which operators to build: ``cuda`` or ``cpu``.

    mmcv turns to nvcc as soon as torch sees a GPU, and fails without it.
    """
    probe = subprocess.run(
        [plan.python, '-c', PROBE], capture_output=True, text=True
    )
    gpu, toolkit = (probe.stdout.split() + ['0', '0'])[:2]
    if gpu == '1' and toolkit == '0':
        print(
            '      a GPU but no CUDA toolkit (nvcc) was found: mmcv gets its '
            'operators for the CPU only'
        )
    return 'cuda' if gpu == toolkit == '1' else 'cpu'


@dataclass(frozen=True)
class Wheel:
    """The mmcv wheel of one stack and its place in the cache.

    Args:
        plan: The environment it is for.
        variant: ``cpu`` or ``cuda``, the operators in it.
    """

    plan: Plan
    variant: str

    @property
    def folder(self) -> Path:
        """Where the wheel is cached."""
        return self.plan.wheel_folder(self.variant)

    def cached(self) -> Path | None:
        """Return the wheel in the cache, or None."""
        return next(iter(sorted(self.folder.glob('*.whl'))), None)

    def announce(self) -> str:
        """Return the line that says what happens to the wheel."""
        name = '=='.join(self.plan.mmcv)
        if self.cached():
            return f'{name}: the built wheel is in {self.folder}'
        cores = jobs()
        low, high = (max(1, round(m / cores)) for m in BUILD_CORE_MINUTES)
        return (
            f"building {name}'s C++ operators: {low} to {high} minutes on "
            f'{cores} cores, once; the wheel is cached in {self.folder}'
        )

    def obtain(self, runner: Runner) -> Path:
        """Return the wheel, built now if it is not in the cache.

        Raises:
            SetupError: If it cannot be built, or the cache cannot be written.
        """
        if not self.cached():
            check_compiler()
            try:
                self._build_aside(runner)
            except OSError as error:
                raise SetupError(
                    f'The wheel cache {self.folder.parent} cannot be written '
                    f'({error}); set SB_MM_CACHE to a folder of yours.'
                ) from error
        return self.cached()

    def _build_aside(self, runner: Runner) -> None:
        shelf = self.folder.parent
        shelf.mkdir(parents=True, exist_ok=True)
        sweep(shelf)
        check_room(shelf, BUILD_GIB, 'make room or set SB_MM_CACHE')
        with TemporaryDirectory(prefix='.partial-', dir=shelf) as partial:
            built = Path(partial) / 'whole'
            self.build(runner, built)
            publish(built, self.folder)

    def build(self, runner: Runner, target: Path) -> None:
        """Build the wheel into `target`.

        pip's own cache is left out: it does not know which torch a wheel was
        built for.
        """
        name, version = self.plan.mmcv
        env = {'MMCV_WITH_OPS': '1', 'MAX_JOBS': str(jobs())}
        if self.variant == 'cpu':
            env.update(CUDA_VISIBLE_DEVICES='', FORCE_CUDA='0')
        options = ['--no-build-isolation', '--no-deps', '--no-cache-dir']
        options += ['--no-binary', name, '--wheel-dir', target]
        pip = [self.plan.python, '-m', 'pip', '-v', 'wheel']
        pin = f'{name}=={version}'
        runner.run(f'Building {name}', *pip, *options, pin, env=env)


def sweep(shelf: Path) -> None:
    """Delete what builds left that were killed more than a day ago."""
    for partial in shelf.glob('.partial-*'):
        if time.time() - partial.stat().st_mtime > 24 * 3600:
            shutil.rmtree(partial, ignore_errors=True)


def publish(built: Path, folder: Path) -> None:
    """Move a whole folder into the cache, unless another build was first."""
    try:
        built.rename(folder)
    except OSError:
        if not any(folder.glob('*.whl')):
            raise
