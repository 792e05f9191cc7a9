"""A training whose loss or weights are no numbers any more is stopped."""

import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from torch import nn

from sb_mm.engine.hooks import DivergenceHook, divergence
from sb_mm.errors import DivergedError, UserInputError

from ..conftest import VALIDATION, Tiny, tiny_runner


@pytest.fixture
def train(tmp_path):
    """Train two epochs of 4; return iterations, what was saved, the error.

    Loss or weight of some iterations, from 1, are what is given.
    """

    def run(losses={}, interval=50, weights={}, **changes):
        seen, calls = [], []

        def loss(weight):
            calls.append(len(calls) + 1)
            loss = (weight * 0).sum() + losses.get(calls[-1], 1.0)
            weight.data *= weights.get(calls[-1], 1.0)
            return loss

        watch = Hook()
        watch.before_val = lambda runner: seen.append('val')
        watch.after_train_epoch = lambda runner: seen.append('checkpoint')
        hook = dict(type='sb_mm.DivergenceHook', interval=interval)
        runner = tiny_runner(
            Tiny(loss), tmp_path, 4, custom_hooks=[hook], **changes
        )
        runner.register_hook(watch, 'LOW')
        try:
            runner.train()
        except DivergedError as error:
            return calls[-1], seen, str(error)
        return calls[-1], seen, None

    return run


@pytest.mark.parametrize(
    ('value', 'first', 'interval', 'found', 'epoch'),
    [
        (math.nan, 1, 2, 2, 1),  # at the next look
        (math.inf, 2, 2, 2, 1),
        (-math.inf, 3, 50, 4, 1),  # at the end of the epoch
        (math.nan, 5, 5, 5, 2),  # intervals count over epochs
        (math.nan, 6, 1, 6, 2),
    ],
)
def test_it_stops_at_the_next_look(
    train, value, first, interval, found, epoch
):
    calls, seen, error = train(dict.fromkeys(range(first, 9), value), interval)
    assert calls == found
    assert f'The loss became NaN or infinite by iteration {found} ' in error
    assert f'(epoch {epoch})' in error
    assert seen.count('checkpoint') == epoch - 1


def test_a_training_that_is_finite_at_every_look_goes_on(train):
    calls, _, error = train({1: 1e30, 2: -1e30, 3: math.nan}, 2)
    assert (calls, error) == (8, None)


def test_weights_spoiled_by_the_last_step_are_never_validated(train):
    """The loss of the last iteration was finite."""
    calls, seen, error = train(weights={8: math.inf}, **VALIDATION)
    assert calls == 8
    assert seen == ['checkpoint', 'val']  # of the first epoch
    assert 'The weights became NaN or infinite by iteration 8 (ep' in error
    # By iterations, too.
    loop = dict(type='IterBasedTrainLoop', max_iters=8, val_interval=3)
    calls, seen, error = train(
        weights={2: math.inf}, train_cfg=loop, **VALIDATION
    )
    assert (calls, seen) == (3, [])
    assert 'The weights became NaN' in error


@pytest.mark.parametrize('interval', [3, -1])
def test_spoiled_weights_are_never_saved_by_iterations(
    train, tmp_path, interval
):
    hook = dict(type='CheckpointHook', by_epoch=False, interval=interval)
    _, _, error = train(
        weights={5: math.inf},
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
        default_hooks=dict(checkpoint=hook, logger=None),
    )
    assert 'The weights became NaN or infinite by iteration 6' in error
    saved = [file.name for file in tmp_path.glob('*.pth')]
    assert saved == ['iter_3.pth'] * (interval == 3)


def test_the_loss_of_another_process_stops_this_one(monkeypatch):
    """A process that went on would wait for the other one in vain."""
    runner = SimpleNamespace(iter=1, train_dataloader=[0] * 9, hooks=[])
    outputs = dict(loss=torch.tensor(1.0, requires_grad=True))
    DivergenceHook(2).after_train_iter(runner, 1, None, outputs)

    def least_with_the_other(tensor, op):
        assert (op, tensor.item()) == ('min', 1)
        tensor.zero_()

    monkeypatch.setattr(divergence, 'all_reduce', least_with_the_other)
    with pytest.raises(DivergedError, match='The loss became NaN'):
        DivergenceHook(2).after_train_iter(runner, 1, None, outputs)


def test_a_test_without_a_training_is_left_alone():
    weights = nn.Linear(1, 1)
    weights.weight.data.fill_(math.nan)
    DivergenceHook().before_val(SimpleNamespace(model=weights, iter=0))
    with pytest.raises(UserInputError, match='interval must be an integer'):
        DivergenceHook(0)
