"""Runs side by side on one machine, with a training that is played."""

import threading
import time

import pytest

from sb_mm.errors import UserInputError
from sb_mm.paper.cells import find_cell
from sb_mm.reproduce import local
from sb_mm.reproduce.execute import Processes, RunFailedError
from sb_mm.reproduce.local import run_locally
from sb_mm.reproduce.recipe import Recipe
from sb_mm.reproduce.runs import Run


@pytest.fixture
def runs(tmp_path):
    cell = find_cell('t6-x0.35-sb')
    return [Run(cell, seed, Recipe(), tmp_path) for seed in range(6)]


@pytest.fixture
def play(monkeypatch, make_record):
    """Let `execute` do what a function of run and environment does."""

    def patch(training):
        def execute(run, environment, processes):
            training(run, environment)
            return make_record(run.cell.id, seed=run.seed)

        monkeypatch.setattr(local, 'execute', execute)
        monkeypatch.setattr(local, '_POLL_SECONDS', 0.01)

    return patch


def _outcomes(events):
    return {event[0].seed: event[1] for event in events if event}


def test_every_run_is_done_by_the_given_number_of_processes(runs, play):
    lock, active, most = threading.Lock(), set(), []

    def training(run, environment):
        with lock:
            active.add(run.seed)
            most.append(len(active))
        time.sleep(0.05)
        active.discard(run.seed)

    play(training)
    outcomes = _outcomes(run_locally(runs, jobs=3, retries=0))
    assert sorted(outcomes) == list(range(6))
    assert all(record.seed == s for s, record in outcomes.items())
    assert max(most) == 3


def test_a_failure_does_not_stop_the_rest(runs, play):
    def training(run, environment):
        if run.seed == 1:
            raise RunFailedError('out of memory')
        if run.seed == 2:
            raise UserInputError('no data')

    play(training)
    outcomes = _outcomes(run_locally(runs, jobs=2, retries=0))
    assert len(outcomes) == 6
    assert isinstance(outcomes[1], RunFailedError)
    assert isinstance(outcomes[2], UserInputError)
    assert all(outcomes[s].seed == s for s in (0, 3, 4, 5))


def test_a_run_that_failed_is_tried_again_but_no_bad_input(runs, play):
    tries = []

    def training(run, environment):
        tries.append(run.seed)
        if run.seed == 1:
            raise UserInputError('no data')
        if tries.count(run.seed) < 3:
            raise RunFailedError('out of memory')

    play(training)
    outcomes = _outcomes(run_locally(runs[:2], jobs=1, retries=2))
    assert outcomes[0].seed == 0
    assert isinstance(outcomes[1], UserInputError)
    assert tries == [0, 0, 0, 1]
    tries.clear()
    outcomes = _outcomes(run_locally(runs[:1], jobs=1, retries=1))
    assert isinstance(outcomes[0], RunFailedError)


@pytest.mark.parametrize(
    ('visible', 'count', 'expected'),
    [
        ('', 2, ['0', '1', '0']),
        ('3,5', 2, ['3', '5', '3']),
        ('GPU-ab', 1, ['GPU-ab'] * 3),
    ],
)
def test_processes_share_the_gpus_in_turn(
    monkeypatch, visible, count, expected
):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setattr(local.torch.cuda, 'device_count', lambda: count)
    places = [place['CUDA_VISIBLE_DEVICES'] for place in local._places(3)]
    assert places == expected


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(local.torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(local.os, 'sched_getaffinity', lambda _: range(8))
    assert local._places(3) == [dict(OMP_NUM_THREADS='2')] * 3
    assert local._places(16) == [dict(OMP_NUM_THREADS='1')] * 16
    assert local.default_jobs() == 1


def test_leaving_the_loop_ends_what_runs(runs, play, tmp_path, monkeypatch):
    started = threading.Event()

    def execute(run, environment, processes):
        started.set()
        code = processes.run(['sleep', '60'], tmp_path / 'log', {})
        raise RunFailedError(f'exit code {code}')

    monkeypatch.setattr(local, 'execute', execute)
    monkeypatch.setattr(local, '_POLL_SECONDS', 0.01)
    begin = time.monotonic()
    events = run_locally(runs, jobs=1, retries=0)
    assert next(events) is None
    started.wait(10)
    events.close()
    assert time.monotonic() - begin < 30


def test_nothing_starts_after_the_end(tmp_path):
    processes = Processes()
    processes.stop()
    code = processes.run(['sleep', '60'], tmp_path / 'log', {})
    assert code == -15  # SIGTERM
