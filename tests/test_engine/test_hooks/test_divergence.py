"""A training whose loss or weights are no numbers any more is stopped."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from sb_mm.engine.hooks import DivergenceHook, divergence
from sb_mm.errors import DivergedError, UserInputError

ITERATIONS = 4  # of an epoch


class Scripted(BaseModel):
    """Loss or weight of iteration i (from 1) are what was written down."""

    def __init__(self, losses, weights=()):
        super().__init__()
        self.losses = losses
        self.weights = dict(weights)
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
    """Train two epochs and return the runner and the error, if any."""

    def run(losses, interval=2, weights=(), **changes):
        settings = dict(
            model=Scripted(losses, weights),
            work_dir=str(tmp_path),
            train_dataloader=dict(
                dataset=list(range(ITERATIONS)),
                sampler=dict(type='DefaultSampler', shuffle=False),
                batch_size=1,
                num_workers=0,
            ),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
            custom_hooks=[
                dict(type='sb_mm.DivergenceHook', interval=interval),
                dict(type=Watch, priority='LOW'),
            ],
            default_hooks=dict(checkpoint=None, logger=None),
            log_level='ERROR',
            experiment_name=tmp_path.name,
        )
        runner = Runner(**settings | changes)
        runner.watch = next(h for h in runner.hooks if type(h) is Watch)
        try:
            runner.train()
        except DivergedError as error:
            return runner, str(error)
        return runner, None

    return run


def written(runner):
    file = f'{runner.log_dir}/vis_data/diverged.json'
    with open(file) as stream:
        return json.load(stream)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize(
    ('first', 'interval', 'found', 'epoch'),
    [
        (1, 2, 2, 1),  # at the next look
        (2, 2, 2, 1),
        (3, 50, 4, 1),  # at the end of the epoch
        (5, 50, 8, 2),
        (5, 5, 5, 2),  # intervals count over epochs
        (6, 1, 6, 2),
    ],
)
def test_it_stops_at_the_next_look_and_writes_where(
    train, value, first, interval, found, epoch
):
    losses = dict.fromkeys(range(first, 2 * ITERATIONS + 1), value)
    runner, error = train(losses, interval)
    assert runner.model.calls == found
    assert written(runner) == dict(epoch=epoch, iter=found)
    assert error.startswith('The loss became NaN or infinite by iteration ')
    assert f'{found} (epoch {epoch})' in error
    assert runner.watch.seen.count('checkpoint') == epoch - 1


@pytest.mark.parametrize(
    'losses', [{}, {1: 1e30, 2: -1e30}, {3: math.nan}], ids=str
)
def test_a_training_that_is_finite_at_every_look_goes_on(train, losses):
    runner, error = train(losses)
    assert error is None
    assert runner.model.calls == 2 * ITERATIONS
    with pytest.raises(FileNotFoundError):
        written(runner)


VALIDATION = dict(
    val_dataloader=dict(
        dataset=[0], sampler=dict(type='DefaultSampler', shuffle=False)
    ),
    val_cfg=dict(),
    val_evaluator=[],
)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_weights_spoiled_by_the_last_step_are_never_validated(train, value):
    """The loss of the last iteration was finite."""
    spoiled = {2 * ITERATIONS: value}
    runner, error = train({}, 2, spoiled, **VALIDATION)
    assert runner.model.calls == 2 * ITERATIONS
    assert runner.watch.seen == ['checkpoint', 'val']  # of the first epoch
    assert error.startswith('The weights became NaN')
    assert written(runner) == dict(epoch=2, iter=2 * ITERATIONS)


def test_by_iterations_it_looks_before_a_validation_too(train):
    loop = dict(type='IterBasedTrainLoop', max_iters=8, val_interval=3)
    runner, error = train({}, 50, {2: math.inf}, train_cfg=loop, **VALIDATION)
    assert runner.model.calls == 3
    assert runner.watch.seen == []
    assert 'The weights became NaN' in error


@pytest.mark.parametrize('saving', [dict(interval=3), dict(interval=-1)])
def test_spoiled_weights_are_never_saved_by_iterations(
    train, tmp_path, saving
):
    hook = dict(type='CheckpointHook', by_epoch=False, **saving)
    runner, error = train(
        {},
        50,
        {5: math.inf},
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
        default_hooks=dict(checkpoint=hook, logger=None),
    )
    assert 'The weights became NaN or infinite by iteration 6' in error
    saved = [file.name for file in tmp_path.glob('*.pth')]
    assert saved == ['iter_3.pth'] * (saving['interval'] == 3)


def test_a_validation_without_a_training_is_left_alone(train):
    runner, _ = train({}, train_cfg=dict(by_epoch=True, max_epochs=0))
    runner.model.weight.data.fill_(math.nan)
    runner.call_hook('before_val')


@pytest.fixture
def look(tmp_path):
    """Let the hook look at a loss as one of several processes."""
    runner = SimpleNamespace(
        iter=1,
        epoch=0,
        log_dir=str(tmp_path),
        train_dataloader=[0] * 9,
        hooks=[],
    )

    def run(loss):
        outputs = dict(loss=torch.tensor(loss, requires_grad=True))
        DivergenceHook(2).after_train_iter(runner, 1, None, outputs)

    return run


def test_the_loss_of_another_process_stops_this_one(look, monkeypatch):
    """A process that went on would wait for the other one in vain."""
    look(1.0)

    def least_with_the_other(tensor, op):
        assert (op, tensor.item()) == ('min', 1)
        tensor.zero_()

    monkeypatch.setattr(divergence, 'all_reduce', least_with_the_other)
    with pytest.raises(DivergedError, match='The loss became NaN'):
        look(1.0)


@pytest.mark.parametrize('first', [True, False])
def test_only_the_first_process_writes(look, tmp_path, monkeypatch, first):
    monkeypatch.setattr(divergence, 'is_main_process', lambda: first)
    with pytest.raises(DivergedError):
        look(math.nan)
    assert (tmp_path / 'vis_data/diverged.json').is_file() == first


@pytest.mark.parametrize('interval', [0, 2.5])
def test_an_interval_that_is_none_is_refused(interval):
    message = r'interval must be an integer in \[1, inf\)'
    with pytest.raises(UserInputError, match=message):
        HOOKS.build(dict(type='sb_mm.DivergenceHook', interval=interval))
