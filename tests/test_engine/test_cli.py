"""How a tool ends."""

import os
import signal

import pytest
from mmengine.registry import MODELS

from sb_mm.engine.cli import exit_on_sigterm, run_tool


@pytest.fixture
def _handler():
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    exit_on_sigterm()
    # Python has no handler of it where it was started with it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures('_handler')
def test_a_worker_of_a_pool_still_ends_at_once():
    def plain():
        return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    assert not plain()
    child = os.fork()
    if child == 0:
        os._exit(0 if plain() else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.usefixtures('_handler')
@pytest.mark.parametrize(
    ('number', 'code', 'word'),
    [(signal.SIGTERM, 143, 'terminated'), (signal.SIGINT, 130, 'interrupted')],
)
def test_a_signal_that_a_host_takes_for_an_error(capsys, number, code, word):
    def host():
        try:
            signal.raise_signal(number)
        except:  # noqa: E722, as in MMEngine's Config.pretty_text
            raise SyntaxError('Failed to format the config') from None

    with pytest.raises(SystemExit) as stop:
        run_tool(host)
    assert stop.value.code == code
    assert capsys.readouterr().err.strip() == word


@pytest.mark.usefixtures('_handler')
def test_an_error_of_its_own_is_still_raised():
    with pytest.raises(SyntaxError, match='own'):
        run_tool(lambda: exec('raise SyntaxError("own")'))


@pytest.mark.usefixtures('_handler')
def test_a_type_that_is_not_registered(capsys):
    with pytest.raises(SystemExit) as stop:
        run_tool(lambda: MODELS.build(dict(type='NoSuchModel')))
    assert stop.value.code == 2
    message = 'error: NoSuchModel is not in the mmengine::model registry: corr'
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
