"""What numbers were measured with: machine, packages, commit of sb_mm."""

import platform
import re
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from sb_mm.files import repository
from sb_mm.version import __version__

_HOSTS = ('mmcv', 'mmengine', 'mmdetection', 'mmpretrain')
_PACKAGES = (
    *('numpy', 'torch', 'torchvision', 'mmcv-lite', 'mmdet'),
    *_HOSTS,
    *(f'onedl-{name}' for name in _HOSTS),
)


def hardware() -> str:
    """Return the name of the GPU, or threads and kind of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path('/proc/cpuinfo')  # Python knows the architecture only
    text = info.read_text() if info.is_file() else ''
    found = re.search('^model name.*: (.+)', text, re.MULTILINE)
    kind = found[1] if found else platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return f'CPU, {torch.get_num_threads()} threads ({kind}, {capability})'


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, PyTorch, the hosts and ``more``."""
    # What runs, which need not be what is installed.
    found = dict(python=platform.python_version(), sb_mm=__version__)
    for name in (*_PACKAGES, *more):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    if torch.version.cuda and torch.cuda.is_available():
        found['cuda'] = torch.version.cuda
        found['cudnn'] = str(torch.backends.cudnn.version())
    return found


def commit(*more: str) -> str:
    """Return the clone's commit, with ``+`` if its code or ``more`` differs.

    Without a repository of its own, such as from a wheel, it is the version.
    """
    code = ('sb_mm', 'configs', 'tools', *more)
    changed = _git('status', '--porcelain', '--', *code)
    head = _git('rev-parse', '--short', 'HEAD')
    if not head or _git('rev-parse', '--show-prefix'):
        return f'sb_mm=={__version__}'
    return f'{head}{"+" if changed else ""}'


def _git(*args: str) -> str:
    command = ['git', '-C', str(repository()), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # git is not installed
        return ''
    return done.stdout.strip() if repository() else ''
