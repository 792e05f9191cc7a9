"""How a tool ends."""

import errno
import os
import signal
import time
from unittest.mock import Mock

import pytest
from mmengine.config import config
from mmengine.registry import MODELS
from yapf.yapflib import yapf_api

from sb_mm.engine.cli import exit_on_sigterm, run_tool
from sb_mm.errors import DivergedError, UserInputError

from .conftest import MAIN


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
def test_a_signal_that_mmengine_takes_for_an_error_of_syntax(
    end, monkeypatch, number, expected
):
    """It comes while MMEngine formats a config, as before each training."""
    real = yapf_api.FormatCode

    def format_code(*args, **kwargs):
        os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    monkeypatch.setattr(yapf_api, 'FormatCode', format_code)
    # Where MMEngine has imported it already.
    monkeypatch.setattr(config, 'FormatCode', format_code, raising=False)
    cfg = config.Config.fromfile(MAIN)
    with pytest.raises(SyntaxError, match='Failed to format'):
        cfg.pretty_text  # noqa: B018
    assert end(lambda: cfg.pretty_text) == expected


def failing(error):
    return Mock(side_effect=error)


@pytest.mark.parametrize(
    ('error', 'code', 'start'),
    [
        (UserInputError('A: do B.'), 2, 'A: do B.'),
        (DivergedError('The loss became NaN.'), 4, 'The loss became NaN.'),
        (
            *(OSError(errno.ENOSPC, 'No space left on device', 'x.pth'), 2),
            'x.pth cannot be opened or written (No space left on device): ',
        ),
        (
            *(ModuleNotFoundError('no', name='mmdet'), 2),
            'This needs mmdet, which is not installed.',
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_user_can_mend_is_one_sentence(end, error, code, start):
    ended, text = end(failing(error))
    assert ended == code
    assert text.startswith(f'error: {start}')
    assert '\n' not in text


def test_a_type_that_is_not_registered(end):
    code, text = end(lambda: MODELS.build(dict(type='NoSuchModel')))
    assert code == 2
    message = 'error: NoSuchModel is not in the mmengine::model registry: corr'
    assert text.splitlines()[-1].startswith(message)


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
