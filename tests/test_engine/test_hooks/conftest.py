"""Trainings that start at once."""

import pytest
from mmengine.runner import Runner


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """Ask neither git nor compilers who they are."""
    monkeypatch.setattr(Runner, '_log_env', lambda *_: None)
    monkeypatch.setattr('mmengine.runner.runner.get_git_hash', lambda: '')
