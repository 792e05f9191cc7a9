"""Where sb_mm's own files are, and files that others may read at any time."""

import os
from pathlib import Path
from unicodedata import normalize

from sb_mm.errors import explain

# Of what a process that was killed leaves behind.
DRAFT_SUFFIX = '.partial'

_PACKAGE = Path(__file__).resolve().parent
_WHEEL = _PACKAGE / '.mim'  # as the hosts name it; setup.py fills it


def repository() -> Path | None:
    """Return the folder of the clone; None for what a wheel installed."""
    return None if _WHEEL.is_dir() else _PACKAGE.parent


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def product_root() -> Path:
    """Return the folder of ``configs/`` and ``tools/``, which is read only."""
    return repository() or _WHEEL


def find_config(name: str) -> str:
    """Return the path of a config, which may be one of sb_mm's own.

    Those are ``configs/ssd_sb_voc.py`` where there is no such file, or
    ``sb_mm::ssd_sb_voc.py``, as MMEngine writes it.
    """
    own = product_root() / name.replace('sb_mm::', 'configs/', 1)
    return str(own) if own.is_file() and not Path(name).is_file() else name


def nfc(text: str) -> str:
    """Return the form of Unicode in which names are compared."""
    return normalize('NFC', text)


def check_writable(file: Path, *suffixes: str) -> None:
    """Raise UserInputError unless a file can be written, as it will be."""
    form = f'a file in {" or ".join(suffixes)}' if suffixes else 'a file'
    remedy = f'give the name of {form}, in a folder that is there'
    with explain(f"'{file}' cannot be written", remedy):
        if file.is_dir() or suffixes and file.suffix not in suffixes:
            raise ValueError(f'no name of {form}')
        draft = _draft_of(file)
        draft.touch()
        draft.unlink()


def write_in_one_step(file: Path, content: str | bytes) -> None:
    """Write a file that is there whole or not at all.

    The old one, if any, is there until then; also after a power cut.

    Raises:
        OSError: If it cannot be written; names the file.
    """
    draft = _draft_of(file)
    data = content.encode() if isinstance(content, str) else content
    try:
        with draft.open('wb') as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        draft.unlink(missing_ok=True)


def _draft_of(file: Path) -> Path:
    return file.with_name(f'.{file.name}.{os.getpid()}{DRAFT_SUFFIX}')
