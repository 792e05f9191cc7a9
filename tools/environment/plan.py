"""What an environment consists of and where its parts lie."""

import hashlib
import os
import platform
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENVS = {'onedl': '.venv', 'openmmlab': '.venv-openmmlab'}
PYTHON_VERSION = f'{sys.version_info.major}.{sys.version_info.minor}'
# Requirements of sb_mm itself and of what tests and measures it.
OWN = ('runtime', 'dev', 'export', 'bench', 'cluster')


def cache_folder() -> Path:
    """Return the folder outside the clone that keeps built wheels."""
    if os.environ.get('SB_MM_CACHE'):
        return Path(os.environ['SB_MM_CACHE']).expanduser().resolve()
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(base) / 'sb_mm'


@dataclass(frozen=True)
class Plan:
    """The folders, pins and keys of one family's environment.

    Args:
        family: ``onedl`` or ``openmmlab``.
        root: The clone.
    """

    family: str
    root: Path = ROOT

    @property
    def venv(self) -> Path:
        """The virtual environment's folder."""
        return self.root / VENVS[self.family]

    @property
    def python(self) -> Path:
        """The Python inside the virtual environment."""
        return self.venv / 'bin' / 'python'

    @property
    def log(self) -> Path:
        """The file that everything pip says is written to."""
        return self.root / '.setup' / f'{self.family}.log'

    def requirements(self, name: str) -> Path:
        """Return the path of ``requirements/<name>.txt``."""
        return self.root / 'requirements' / f'{name}.txt'

    def pins(self, name: str) -> dict[str, str]:
        """Return the versions that ``requirements/<name>.txt`` pins."""
        lines = self.requirements(name).read_text().split()
        return dict(line.split('==') for line in lines if '==' in line)

    @property
    def mmcv(self) -> tuple[str, str]:
        """The distribution and the version of the family's mmcv."""
        pins = self.pins(self.family)
        return next(pin for pin in pins.items() if pin[0].endswith('mmcv'))

    def stack_key(self) -> str:
        """Return a hash of the Python version and of the pinned stack."""
        files = [
            self.requirements(name) for name in ('build', 'torch', self.family)
        ]
        return _digest(PYTHON_VERSION, platform.machine(), *files)

    def package_key(self) -> str:
        """Return a hash of what the installation of sb_mm depends on."""
        files = [self.requirements(name) for name in OWN]
        return _digest(str(self.root), self.root / 'setup.py', *files)

    def wheel_folder(self, variant: str) -> Path:
        """Return where the mmcv wheel of this stack is cached.

        Args:
            variant: ``cpu`` or ``cuda``, the kind of operators in it.
        """
        torch = self.pins('torch')['torch']
        python = PYTHON_VERSION.replace('.', '')
        machine = sysconfig.get_platform()
        name = '-'.join((f'torch{torch}', f'cp{python}', *self.mmcv, machine))
        suffix = '' if variant == 'cpu' else f'-{variant}'
        return cache_folder() / 'wheels' / (name + suffix)


def _digest(*parts: str | Path) -> str:
    digest = hashlib.sha256()
    for part in parts:
        text = part.read_text() if isinstance(part, Path) else part
        digest.update(f'{len(text)}:{text}'.encode())
    return digest.hexdigest()[:16]
