"""The steps of the set-up, in order, and what they say."""

import fcntl
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from . import SetupError, wheels
from .checks import check_fresh
from .commands import Runner, duration
from .plan import OWN, PYTHON_VERSION, Plan
from .state import State

CHECK = 'import mmcv.ops, mmdet, mmpretrain, sb_mm'


@dataclass
class Setup:
    """Makes or completes one environment.

    Args:
        plan: The environment.
        state: Which steps are finished.
        lock: The descriptor of the file that is locked meanwhile.
    """

    plan: Plan
    state: State
    lock: int
    times: dict[str, float] = field(default_factory=dict)

    @cached_property
    def runner(self) -> Runner:
        """Runs the commands; its log begins with the first of them."""
        return Runner(self.plan.log, held=[self.lock])

    def steps(self) -> list[tuple[str, Callable[[], None], str, bool]]:
        """List name, action, key, and whether the environment changes."""
        stack, package = self.plan.stack_key(), self.plan.package_key()
        return [
            ('virtual environment', self.make_venv, stack, True),
            ('torch', self.install_torch, stack, True),
            ('mmcv wheel', self.obtain_mmcv, stack, False),
            ('OpenMMLab', self.install_family, stack, True),
            ('sb_mm', self.install_package, stack + package, True),
            ('import check', self.check_imports, stack + package, False),
        ]

    def outstanding(self) -> list[str]:
        """List the steps that are not finished with the present inputs."""
        names = [
            name
            for name, _, key, _ in self.steps()
            if not self.state.has(name, key)
        ]
        if self.state.running or not self.plan.python.exists():
            names = [name for name, *_ in self.steps()]
        if 'OpenMMLab' in names:
            names.append('mmcv wheel')  # it may have left the cache
        return names

    def run(self) -> None:
        """Run the outstanding steps.

        Raises:
            SetupError: If one cannot be done.
        """
        outstanding = self.outstanding()
        steps = self.steps()
        for number, (name, action, key, changes) in enumerate(steps, 1):
            if name in outstanding:
                self._prefix = f'[{number}/{len(steps)}]'
                start = time.monotonic()
                if number == 1:
                    self.clear()
                with self.state.step(name, key, changes):
                    action()
                self.times[name] = time.monotonic() - start

    def say(self, text: str) -> None:
        """Print what begins now."""
        print(f'{self._prefix} {text}', flush=True)

    def pip(self, task: str, *arguments: object) -> None:
        """Installs into the environment."""
        command = (self.plan.python, '-m', 'pip', 'install')
        self.runner.run(task, *command, *map(str, arguments))

    def python(self, task: str, code: str) -> None:
        """Run `code` in the environment, not in the clone."""
        self.runner.run(task, self.plan.python, '-I', '-c', code)

    def clear(self) -> None:
        """Put an unfinished or outdated environment away.

        It is renamed first: a folder that is half deleted would look like
        somebody else's.
        """
        check_fresh(self.plan)
        discarded = self.runner.log.with_name(f'old-{self.plan.venv.name}')
        shutil.rmtree(discarded, ignore_errors=True)
        if self.plan.venv.exists():
            self.say('removing an environment that is unfinished or outdated')
            self.plan.venv.rename(discarded)
            shutil.rmtree(discarded, ignore_errors=True)
        self.state.finished.clear()

    def make_venv(self) -> None:
        """Make the virtual environment, with the tools that build mmcv."""
        self.say(f'virtual environment in {self.plan.venv}: half a minute')
        # The base Python: the running one may be in the folder just cleared.
        base = getattr(sys, '_base_executable', None) or sys.executable
        task = 'Making the virtual environment'
        self.runner.run(task, base, '-m', 'venv', self.plan.venv)
        needs = self.plan.requirements('build')
        self.pip('Installing pip and setuptools', '--upgrade', '-r', needs)

    def install_torch(self) -> None:
        """Installs torch and torchvision."""
        pins = self.plan.pins('torch')
        names = ', '.join(f'{name} {pin}' for name, pin in pins.items())
        self.say(f'{names}: 1 minute, and the time to download 3 GB')
        needs = self.plan.requirements('torch')
        self.pip('Installing torch', '-r', needs)

    @cached_property
    def mmcv_wheel(self) -> wheels.Wheel:
        """The mmcv wheel that fits this machine; needs torch to look."""
        return wheels.Wheel(self.plan, wheels.find_variant(self.plan))

    def obtain_mmcv(self) -> None:
        """Put the mmcv wheel into the cache."""
        self.say(self.mmcv_wheel.announce())
        self.mmcv_wheel.obtain(self.runner)

    def install_family(self) -> None:
        """Installs mmcv from its wheel and the other OpenMMLab packages."""
        self.say('the OpenMMLab packages at their pins: 1 minute')
        wheel = self.mmcv_wheel.obtain(self.runner)
        needs = self.plan.requirements(self.plan.family)
        task = 'Installing the OpenMMLab packages'
        self.pip(task, *self.held_torch, wheel, '-r', needs)
        try:
            self.python('Importing OpenCV', 'import cv2')
        except SetupError:
            self.replace_opencv()

    @property
    def held_torch(self) -> tuple[object, ...]:
        """The options of pip that keep torch at its pin."""
        return '-c', self.plan.requirements('torch')

    def replace_opencv(self) -> None:
        """Put OpenCV's build without a display in place of the other.

        The hosts require ``opencv-python``, which does not load on a machine
        without the libraries of a desktop.
        """
        code = 'from importlib.metadata import version\n'
        code += "print(version('opencv-python'))"
        version = subprocess.check_output(
            [self.plan.python, '-I', '-c', code], text=True
        ).strip()
        pin = f'opencv-python-headless=={version}'
        options = ('--force-reinstall', '--no-deps')
        self.pip(f'Installing {pin}', *options, pin)

    def install_package(self) -> None:
        """Installs sb_mm as editable, what it needs and the dev tools."""
        self.say('sb_mm itself, pytest and ruff: a few seconds')
        own = ('--no-build-isolation', '--no-deps', '-e', self.plan.root)
        self.pip('Installing sb_mm', *own)
        names = map(self.plan.requirements, OWN)
        needs = [part for name in names for part in ('-r', name)]
        self.pip('Installing the tools', *self.held_torch, *needs)

    def check_imports(self) -> None:
        """Import mmcv's operators, the hosts and sb_mm once."""
        self.say('importing mmcv.ops, mmdet, mmpretrain and sb_mm')
        try:
            self.python('The import check', CHECK)
        except SetupError as error:
            raise SetupError(
                f'{str(error)[:-1]}; if the cached wheel was built on another '
                f'machine, delete {self.mmcv_wheel.folder}.'
            ) from error

    def report(self) -> None:
        """Print the wall time of each part."""
        total = duration(sum(self.times.values()))
        print(f'The environment is ready after {total}:')
        for name, seconds in self.times.items():
            print(f'  {name:<20} {duration(seconds):>12}')
        print(f'  the log: {self.runner.log}')


@contextmanager
def locked(plan: Plan) -> Iterator[int]:
    """Keep a second set-up of the same environment waiting."""
    plan.log.parent.mkdir(parents=True, exist_ok=True)
    with plan.log.with_suffix('.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print('waiting for another set-up of this environment')
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def set_up(plan: Plan) -> None:
    """Make or completes the environment of `plan`.

    Raises:
        SetupError: If that is not possible; what is finished is kept.
    """
    with locked(plan) as lock:
        setup = Setup(plan, State.load(plan.venv), lock)
        if not setup.outstanding():
            return
        print(f'setting up {plan.family} for Python {PYTHON_VERSION}')
        setup.run()
        setup.report()


def end_by_exception() -> None:
    """Turn signals into an exit that ends the children as well."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, lambda code, _: sys.exit(128 + code))


def run(family: str) -> int:
    """Set one family up and returns the exit code.

    Args:
        family: ``onedl`` or ``openmmlab``.
    """
    end_by_exception()
    try:
        set_up(Plan(family))
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('Interrupted; the next call goes on.', file=sys.stderr)
        return 130
    return 0
