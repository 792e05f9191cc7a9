"""What a run logged: files with one JSON object a line."""

import json
from pathlib import Path

from .run_info import start_folders


def read_log_lines(
    work_dir: str | Path, name: str, newest_only: bool = True
) -> list[dict]:
    """Return the objects of a log file.

    Args:
        work_dir: Work directory, which has a log folder for every start of a
            run.
        name: Name of the file in ``vis_data`` of a log folder.
        newest_only: Of the newest start that wrote such a file; if False, of
            all of them, the oldest first.

    Raises:
        FileNotFoundError: If no run wrote such a file.
    """
    folders = start_folders(Path(work_dir))
    files = [folder / 'vis_data' / name for folder in folders]
    files = [file for file in files if file.is_file()]
    if not files:
        raise FileNotFoundError(f'{work_dir} holds no vis_data/{name}.')
    return [
        json.loads(line)
        for file in (files[-1:] if newest_only else files)
        for line in file.read_text().splitlines()
    ]
