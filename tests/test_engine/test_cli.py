"""How a tool ends."""

import os
import signal

import pytest

from sb_mm.engine.cli import exit_on_sigterm


@pytest.fixture
def _handler():
    before = signal.getsignal(signal.SIGTERM)
    exit_on_sigterm()
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures('_handler')
def test_a_worker_of_a_pool_still_ends_at_once():
    def plain():
        return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    assert not plain()
    child = os.fork()
    if child == 0:
        os._exit(0 if plain() else 1)
    assert os.waitpid(child, 0)[1] == 0
