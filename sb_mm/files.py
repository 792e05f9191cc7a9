"""Files that others may read at any time."""

import os
from pathlib import Path

# Of what a process that was killed leaves behind.
DRAFT_SUFFIX = '.partial'


def write_in_one_step(file: Path, content: str | bytes) -> None:
    """Write a file that is there whole or not at all.

    The old one, if any, is there until then; also after a power cut.

    Args:
        file: To be made or replaced.
        content: Text is written as UTF-8.

    Raises:
        OSError: If it cannot be written; names the file.
    """
    draft = file.with_name(f'.{file.name}.{os.getpid()}{DRAFT_SUFFIX}')
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
