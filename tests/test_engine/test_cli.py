"""How a tool ends."""

import errno
import os
import signal
import time
from unittest.mock import Mock

import pytest
from mmengine.registry import MODELS

from sb_mm.engine.cli import exit_on_sigterm, run_tool
from sb_mm.errors import DivergedError, UserInputError


@pytest.fixture(autouse=True)
def _handler():
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    exit_on_sigterm()
    # Python has no handler of it where it was started with it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def end(capsys):
    """Run a function as a tool; return exit code and standard error."""

    def run(main):
        with pytest.raises(SystemExit) as stop:
            run_tool(main)
        return stop.value.code, capsys.readouterr().err.strip()

    return run


def test_a_worker_of_a_pool_ends_at_once():
    """Also before its first line, where Python forgot the signal."""
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    for _ in range(10):
        child = os.fork()
        if child == 0:
            time.sleep(1)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        assert os.waitpid(child, 0)[1] == signal.SIGTERM


@pytest.mark.parametrize(
    ('number', 'expected'),
    [
        (signal.SIGTERM, (143, 'terminated')),
        (signal.SIGINT, (130, 'interrupted')),
    ],
)
@pytest.mark.parametrize('formatting', [False, True])
def test_a_signal_ends_a_tool(end, number, expected, formatting):
    def main():
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except BaseException as error:
            if formatting:  # as MMEngine's Config.pretty_text does
                raise SyntaxError('Failed to format') from error
            raise

    assert end(main) == expected


def failing(error):
    return Mock(side_effect=error)


@pytest.mark.parametrize(
    ('main', 'code', 'start'),
    [
        (failing(UserInputError('A: do B.')), 2, 'A: do B.'),
        (failing(DivergedError('The loss is NaN.')), 4, 'The loss is NaN.'),
        (
            failing(OSError(errno.ENOSPC, 'No space left', 'x.pth')),
            *(2, 'x.pth cannot be opened or written (No space left): '),
        ),
        (
            failing(ModuleNotFoundError('no', name='mmdet')),
            *(2, 'This needs mmdet, which is not installed.'),
        ),
        (
            lambda: MODELS.build(dict(type='Net5')),
            *(2, 'Net5 is not in the mmengine::model registry: correct'),
        ),
    ],
    ids=['input', 'divergence', 'disk', 'host', 'registry'],
)
def test_what_a_user_can_mend_is_one_sentence(end, main, code, start):
    ended, text = end(main)
    assert ended == code
    assert text.splitlines()[-1].startswith(f'error: {start}')
    assert 'Traceback' not in text


@pytest.mark.parametrize(
    'error',
    [
        *(SyntaxError('own'), OSError(errno.EBADF, 'own'), KeyError('own')),
        SystemExit('own'),
    ],
    ids=repr,
)
def test_a_bug_and_an_exit_of_the_tool_itself_stay(error):
    with pytest.raises(type(error), match='own'):
        run_tool(failing(error))
