"""A validation that was cut is made up for when the training goes on."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from sb_mm.engine.hooks import ValidateResumedHook


@pytest.mark.parametrize(
    ('kind', 'done', 'validated'),
    [
        (EpochBasedTrainLoop, 0, False),  # a new training
        (EpochBasedTrainLoop, 2, False),  # before val_begin
        (EpochBasedTrainLoop, 4, True),
        (EpochBasedTrainLoop, 5, False),
        (EpochBasedTrainLoop, 7, True),  # the last one, whatever the interval
        (IterBasedTrainLoop, 4, True),
        (IterBasedTrainLoop, 6, True),
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
