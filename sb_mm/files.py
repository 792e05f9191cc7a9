"""Files that others may read at any time."""

import os
from pathlib import Path


def write_in_one_step(file: Path, text: str) -> None:
    """Write a text file that is there whole or not at all."""
    draft = file.with_name(f'.{file.name}.{os.getpid()}')
    try:
        draft.write_text(text)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
