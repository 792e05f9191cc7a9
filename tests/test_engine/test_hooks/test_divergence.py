"""A training whose loss is no number any more is stopped."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from sb_mm.engine import divergence_hook
from sb_mm.engine.hooks.divergence import DivergedError, DivergenceHook
from sb_mm.errors import UserInputError

ITERATIONS = 4  # of an epoch


class Scripted(BaseModel):
    """Its loss in iteration i (from 1) is what was written down for i."""

    def __init__(self, losses):
        super().__init__()
        self.losses = losses
        self.calls = 0
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples=None, mode='loss'):
        self.calls += 1
        value = self.losses.get(self.calls, 1.0)
        return dict(loss=(self.weight * 0).sum() + value)


@pytest.fixture
def train(tmp_path):
    """Train two epochs and return the runner and the error, if any."""

    def run(losses, interval=2, **changes):
        settings = dict(
            model=Scripted(losses),
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
                dict(type='sb_mm.DivergenceHook', interval=interval)
            ],
            default_hooks=dict(checkpoint=None, logger=None),
            log_level='ERROR',
            experiment_name=tmp_path.name,
        )
        runner = Runner(**settings | changes)
        try:
            runner.train()
        except DivergedError as error:
            return runner, error
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
    assert str(error) == (
        f'The loss is {value} in iteration {found} (epoch {epoch}): the '
        'training diverged.'
    )


@pytest.mark.parametrize(
    'losses', [{}, {1: 1e30, 2: -1e30}, {3: math.nan}], ids=str
)
def test_a_training_that_is_finite_at_every_look_goes_on(train, losses):
    runner, error = train(losses)
    assert error is None
    assert runner.model.calls == 2 * ITERATIONS
    with pytest.raises(FileNotFoundError):
        written(runner)


def test_by_iterations_it_looks_as_often(train):
    losses = dict.fromkeys(range(3, 9), math.nan)
    cfg = dict(type='IterBasedTrainLoop', max_iters=8)
    runner, error = train(losses, 5, train_cfg=cfg)
    # The fourth is the last one of the data.
    assert runner.model.calls == 4
    assert error is not None


@pytest.fixture
def look(tmp_path):
    """Let the hook look at a loss as one of several processes."""
    runner = SimpleNamespace(
        iter=1, epoch=0, log_dir=str(tmp_path), train_dataloader=[0] * 9
    )

    def run(loss):
        outputs = dict(loss=torch.tensor(loss, requires_grad=True))
        DivergenceHook(2).after_train_iter(runner, 1, None, outputs)

    return run


def test_the_loss_of_another_process_stops_this_one(look, monkeypatch):
    """A process that went on would wait for the other one in vain."""
    look(1.0)

    def mean_with_the_other(tensor, op):
        assert op == 'mean'
        tensor.add_(math.nan).div_(2)

    monkeypatch.setattr(divergence_hook, 'all_reduce', mean_with_the_other)
    with pytest.raises(DivergedError, match='The loss is nan'):
        look(1.0)


@pytest.mark.parametrize('first', [True, False])
def test_only_the_first_process_writes(look, tmp_path, monkeypatch, first):
    monkeypatch.setattr(divergence_hook, 'is_main_process', lambda: first)
    with pytest.raises(DivergedError):
        look(math.nan)
    assert (tmp_path / 'vis_data/diverged.json').is_file() == first


def test_the_losss_own_value_stays(monkeypatch):
    def spoil(tensor, op):
        tensor.zero_()

    monkeypatch.setattr(divergence_hook, 'all_reduce', spoil)
    loss = torch.tensor(3.0)
    runner = SimpleNamespace(iter=1, epoch=0, train_dataloader=[0] * 9)
    DivergenceHook(2).after_train_iter(runner, 1, None, dict(loss=loss))
    assert loss == 3


@pytest.mark.parametrize('interval', [0, -1, 2.5, None])
def test_an_interval_that_is_none_is_refused(interval):
    message = r'interval must be an integer in \[1, inf\)'
    with pytest.raises(UserInputError, match=message):
        HOOKS.build(dict(type='sb_mm.DivergenceHook', interval=interval))
