"""What the live table says of runs on their way."""

import math

import pytest

from sb_mm.paper.cells import find_cell
from sb_mm.reproduce import display
from sb_mm.reproduce.display import Display, Eta
from sb_mm.reproduce.recipe import Recipe
from sb_mm.reproduce.runs import Progress, Run

CELL = find_cell('t6-x0.35-sb')


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [100.0]
    monkeypatch.setattr(display.time, 'monotonic', lambda: now[0])
    return now


def test_the_time_left_is_by_what_was_done_since_the_first_look(clock):
    # Resumed at 4 of 10; half an epoch in a minute.
    eta = Eta(10, 4)
    assert eta.left(4) == '-:--:--'
    clock[0] += 60
    assert eta.left(4.5) == '0:11:00'
    # A validation, in which nothing is trained, counts.
    clock[0] += 60
    assert eta.left(4.5) == '0:22:00'
    assert eta.left(10) == '0:00:00'


@pytest.mark.parametrize(
    ('progress', 'text'),
    [
        (Progress(), 'starting'),
        (Progress(0.5, 2.0, math.nan), 'loss 2.000'),
        (Progress(1.5, 1.25, 33.0), 'loss 1.250, 33.00 %'),
    ],
)
def test_only_what_is_known_is_shown(progress, text):
    assert display._values(progress) == text


def test_a_run_is_counted_when_it_has_ended(
    tmp_path, make_record, monkeypatch, clock
):
    runs = [Run(CELL, seed, Recipe(epochs=2), tmp_path) for seed in (0, 1)]
    halfway = Progress(1.0, 2.0, 30.0)
    monkeypatch.setattr(Run, 'progress', lambda _: halfway)
    with Display(runs) as shown:
        shown.update()
        (task,) = shown._all.tasks
        # Two halves are no run.
        assert (task.completed, task.fields['ended']) == (1.0, 0)
        shown.end(runs[0], make_record(CELL.id))
        clock[0] += 60
        shown.end(runs[1], RuntimeError('out of memory'))
        assert (task.completed, task.fields['ended']) == (2.0, 2)
        assert task.fields['failed'] == 1
        assert not shown._bars.tasks


def test_a_run_without_a_line_in_its_log_is_starting(tmp_path, monkeypatch):
    run = Run(CELL, 0, Recipe(epochs=2), tmp_path)
    with Display([run]) as shown:
        shown.update()
        assert not shown._bars.tasks
        monkeypatch.setattr(shown, '_since', 0.0)
        run.work_dir.mkdir(parents=True)
        run.log.touch()
        shown.update()
        (task,) = shown._bars.tasks
        assert task.fields['values'] == 'starting'
