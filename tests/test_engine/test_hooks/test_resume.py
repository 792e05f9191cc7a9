"""A training that is resumed is the one that was not cut."""

import random
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mmengine.optim import MultiStepLR
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn
from torch.optim import SGD

from sb_mm.engine.hooks import (
    ResumedScheduleHook,
    ValidateResumedHook,
    resume,
)
from sb_mm.errors import UserInputError
from sb_mm.weights import weights_only

from ..conftest import Tiny, tiny_runner

ITERATIONS = 2  # of an epoch


@pytest.fixture
def train(tmp_path):
    """Train to an epoch, or on to it, and return what was drawn."""

    def run(epochs, folder='run', seed=3, resume=False):
        drawn = []

        def draw(weight):
            numbers = random.random(), np.random.rand(), torch.rand(()).item()
            drawn.append(numbers)
            return weight.sum()

        runner = tiny_runner(
            Tiny(draw),
            tmp_path / folder,
            ITERATIONS,
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            custom_hooks=[dict(type='sb_mm.EpochSeedHook')],
            default_hooks=dict(logger=None),
            randomness=dict(seed=seed),
            resume=resume,
        )
        with weights_only():  # as MMEngine 0.10.7 cannot read its own
            runner.train()
        return drawn

    return run


def test_a_resumed_run_draws_what_the_uncut_one_draws(train):
    uncut = train(3)
    # Neither from epoch to epoch nor in an epoch do the numbers repeat.
    for numbers in zip(*uncut, strict=True):
        assert len(set(numbers)) == 3 * ITERATIONS
    assert train(1, 'cut') == uncut[:ITERATIONS]
    assert train(3, 'cut', resume=True) == uncut[ITERATIONS:]


def test_runs_and_processes_differ(train, monkeypatch):
    first, other_seed = train(1), train(1, 'seed', seed=4)
    monkeypatch.setattr(resume, 'get_rank', lambda: 1)
    other_process = train(1, 'rank')
    for numbers in zip(*first, *other_seed, *other_process, strict=True):
        assert len(set(numbers)) == 3 * ITERATIONS


@pytest.mark.parametrize(
    ('kind', 'done', 'validated'),
    [
        (EpochBasedTrainLoop, 0, False),  # a new training
        (EpochBasedTrainLoop, 2, False),  # before val_begin
        (EpochBasedTrainLoop, 4, True),
        (EpochBasedTrainLoop, 5, False),
        (EpochBasedTrainLoop, 7, True),  # the last one, whatever the interval
        (IterBasedTrainLoop, 4, True),
        (IterBasedTrainLoop, 7, True),
        (IterBasedTrainLoop, 5, False),
    ],
)
def test_it_validates_where_the_loop_would_have(kind, done, validated):
    loop = Mock(spec=kind, val_begin=3, val_interval=2)
    loop.max_epochs = loop.max_iters = 7
    by_epoch = kind is EpochBasedTrainLoop
    # The other of the two counts something else.
    epoch, iteration = (done, 100 + done) if by_epoch else (0, done)
    runner = SimpleNamespace(
        train_loop=loop, val_loop=Mock(), epoch=epoch, iter=iteration
    )
    ValidateResumedHook().before_train(runner)
    assert runner.val_loop.run.called == validated


def schedule_of(lr=1.0, **settings):
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=lr)
    return MultiStepLR(optimizer, **dict(milestones=[1], end=2) | settings)


def go_on(asked, saved, before=2, now=2, named=False):
    """Load a checkpoint of `before` epochs for a training to `now`."""
    runner = SimpleNamespace(
        cfg=dict(resume=True, schedule_named=named),
        param_schedulers=asked,
        train_dataloader=range(ITERATIONS),
        max_iters=now * ITERATIONS,
    )
    checkpoint = dict(
        param_schedulers=[schedule.state_dict() for schedule in saved],
        message_hub=dict(runtime_info=dict(max_iters=before * ITERATIONS)),
    )
    ResumedScheduleHook().after_load_checkpoint(runner, checkpoint)


@pytest.mark.parametrize(
    ('end', 'before', 'now', 'refused'),
    [
        *((2, 1, 4, True), (2, 2, 4, True), (2, 2, 2, False)),
        *((2, 3, 4, False), (4, 2, 4, False), (10**9, 2, 4, False)),
    ],
)
def test_more_epochs_than_a_schedule_with_a_fixed_end(
    end, before, now, refused
):
    schedules = [schedule_of(end=end)]
    message = r'ends at iteration 4, not 8\).* load_from=CHECKPOINT'
    caught = pytest.raises(UserInputError, match=message)
    with caught if refused else nullcontext():
        go_on(schedules, schedules, before, now)
    go_on(schedules, schedules, before, now, named=True)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(end=4), r'\(param_scheduler.0.end 2, not 4\)'),
        (dict(milestones=[1, 5]), r'milestones \[1\], not \[1, 5\]'),
        (dict(lr=2.0), 'base_values 1.0, not 2.0'),
    ],
)
def test_another_schedule_than_the_checkpoints_is_refused(change, message):
    """MMEngine goes on with that of the checkpoint, without a word."""
    asked, saved = [schedule_of(**change)], [schedule_of()]
    with pytest.raises(UserInputError, match=message):
        go_on(asked, saved)
    with pytest.raises(UserInputError, match='1 schedules, not 2'):
        go_on(saved * 2, saved)
