"""What a run logged: files with one JSON object a line."""

import json
from pathlib import Path


def read_records(work_dir: str | Path, name: str) -> list[dict]:
    """Return the records of a file of the newest run that wrote it.

    Args:
        work_dir: Work directory, which has a log folder for every run.
        name: Name of the file in ``vis_data`` of a log folder.

    Raises:
        FileNotFoundError: If no run wrote such a file.
    """
    files = sorted(Path(work_dir).glob(f'*/vis_data/{name}'))
    if not files:
        raise FileNotFoundError(f'{work_dir} holds no vis_data/{name}.')
    return [json.loads(line) for line in files[-1].read_text().splitlines()]
