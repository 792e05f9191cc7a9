"""Which steps of a set-up are finished, kept inside the environment."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

NAME = 'sb_mm-setup.json'


@dataclass
class State:
    """The record of finished steps.

    Args:
        folder: The virtual environment's folder.
        finished: The key of the inputs of each finished step.
        running: The step that changes the environment now, or ''.
    """

    folder: Path
    finished: dict[str, str] = field(default_factory=dict)
    running: str = ''

    @classmethod
    def load(cls, folder: Path) -> 'State':
        """Read the record in `folder`; without one it is empty."""
        try:
            stored = json.loads((folder / NAME).read_text())
            return cls(folder, stored['finished'], stored['running'])
        except (OSError, ValueError, KeyError, TypeError):
            return cls(folder)

    def save(self) -> None:
        """Write the record; a reader sees the old or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f'{NAME}.partial'
        record = {'finished': self.finished, 'running': self.running}
        partial.write_text(json.dumps(record, indent=1) + '\n')
        os.replace(partial, self.folder / NAME)

    def has(self, step: str, key: str) -> bool:
        """Says whether `step` was finished with the same inputs."""
        return self.finished.get(step) == key

    @contextmanager
    def step(self, name: str, key: str, changes: bool) -> Iterator[None]:
        """Record `name` as finished when its block ends well.

        A block that is killed leaves its name in `running`; one that raises an
        ``Exception`` does not, because pip then cleaned up after itself.

        Args:
            name: The step.
            key: The hash of the step's inputs.
            changes: Whether the step changes the environment.
        """
        self.running = name if changes else ''
        self.save()
        try:
            yield
        except Exception:
            self.running = ''
            self.save()
            raise
        self.running = ''
        self.finished[name] = key
        self.save()
