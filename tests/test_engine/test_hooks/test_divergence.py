"""A training whose loss or weights are no numbers any more is stopped."""

import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from sb_mm.engine.hooks import DivergenceHook, divergence
from sb_mm.errors import DivergedError, UserInputError

ITERATIONS = 4  # of an epoch


class Scripted(BaseModel):
    """Loss or weight of iteration i (from 1) are what was written down."""

    def __init__(self, losses, weights):
        super().__init__()
        self.losses = losses
        self.weights = weights
        self.calls = 0
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples=None, mode='loss'):
        if mode == 'predict':
            return [BaseDataElement()]
        self.calls += 1
        loss = (self.weight * 0).sum() + self.losses.get(self.calls, 1.0)
        self.weight.data *= self.weights.get(self.calls, 1.0)
        return dict(loss=loss)


class Watch(Hook):
    """What a validation and a checkpoint would come from."""

    def __init__(self):
        self.seen = []

    def before_val(self, runner):
        self.seen.append('val')

    def after_train_epoch(self, runner):
        self.seen.append('checkpoint')


@pytest.fixture
def train(tmp_path):
    """Train two epochs; return iterations, what was saved, and the error."""

    def run(losses, interval=2, weights=(), **changes):
        watch = Watch()
        hook = dict(type='sb_mm.DivergenceHook', interval=interval)
        settings = dict(
            model=Scripted(losses, dict(weights)),
            work_dir=str(tmp_path),
            train_dataloader=dict(
                dataset=list(range(ITERATIONS)),
                sampler=dict(type='DefaultSampler', shuffle=False),
                batch_size=1,
                num_workers=0,
            ),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
            custom_hooks=[hook],
            default_hooks=dict(checkpoint=None, logger=None),
            log_level='ERROR',
            experiment_name=tmp_path.name,
        )
        runner = Runner(**settings | changes)
        runner.register_hook(watch, 'LOW')
        try:
            runner.train()
        except DivergedError as error:
            return runner.model.calls, watch.seen, str(error)
        return runner.model.calls, watch.seen, None

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
    losses = dict.fromkeys(range(first, 2 * ITERATIONS + 1), value)
    calls, seen, error = train(losses, interval)
    assert calls == found
    assert error.startswith('The loss became NaN or infinite by iteration ')
    assert f'{found} (epoch {epoch})' in error
    assert seen.count('checkpoint') == epoch - 1


@pytest.mark.parametrize(
    'losses', [{}, {1: 1e30, 2: -1e30}, {3: math.nan}], ids=str
)
def test_a_training_that_is_finite_at_every_look_goes_on(train, losses):
    calls, _, error = train(losses)
    assert error is None
    assert calls == 2 * ITERATIONS


VALIDATION = dict(
    val_dataloader=dict(
        dataset=[0], sampler=dict(type='DefaultSampler', shuffle=False)
    ),
    val_cfg=dict(),
    val_evaluator=[],
)


def test_weights_spoiled_by_the_last_step_are_never_validated(train):
    """The loss of the last iteration was finite."""
    spoiled = {2 * ITERATIONS: math.inf}
    calls, seen, error = train({}, 2, spoiled, **VALIDATION)
    assert calls == 2 * ITERATIONS
    assert seen == ['checkpoint', 'val']  # of the first epoch
    assert error.startswith('The weights became NaN')
    assert f'iteration {2 * ITERATIONS} (epoch 2)' in error


def test_by_iterations_it_looks_before_a_validation_too(train):
    loop = dict(type='IterBasedTrainLoop', max_iters=8, val_interval=3)
    calls, seen, error = train(
        {}, 50, {2: math.inf}, train_cfg=loop, **VALIDATION
    )
    assert (calls, seen) == (3, [])
    assert 'The weights became NaN' in error


@pytest.mark.parametrize('saving', [dict(interval=3), dict(interval=-1)])
def test_spoiled_weights_are_never_saved_by_iterations(
    train, tmp_path, saving
):
    hook = dict(type='CheckpointHook', by_epoch=False, **saving)
    _, _, error = train(
        {},
        50,
        {5: math.inf},
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
        default_hooks=dict(checkpoint=hook, logger=None),
    )
    assert 'The weights became NaN or infinite by iteration 6' in error
    saved = [file.name for file in tmp_path.glob('*.pth')]
    assert saved == ['iter_3.pth'] * (saving['interval'] == 3)


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
    DivergenceHook().before_val(SimpleNamespace(model=weights))


def test_an_interval_that_is_none_is_refused():
    with pytest.raises(UserInputError, match='interval must be an integer'):
        DivergenceHook(0)
