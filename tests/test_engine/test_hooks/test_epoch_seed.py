"""Random numbers of an epoch do not depend on how the run came to it."""

import random

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from sb_mm.checkpoint import weights_only
from sb_mm.engine.hooks import epoch_seed

from ..conftest import tiny_runner

ITERATIONS = 2  # of an epoch


class Drawing(BaseModel):
    """Notes random numbers of each kind, iteration by iteration."""

    def __init__(self):
        super().__init__()
        self.drawn = []
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples=None, mode='loss'):
        numbers = random.random(), np.random.rand(), torch.rand(()).item()
        self.drawn.append(numbers)
        return dict(loss=self.weight.sum())


@pytest.fixture
def train(tmp_path):
    """Train to an epoch, or on to it, and return what was drawn."""

    def run(epochs, folder='run', seed=3, resume=False):
        runner = tiny_runner(
            Drawing(),
            tmp_path / folder,
            ITERATIONS,
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            custom_hooks=[dict(type='sb_mm.EpochSeedHook')],
            default_hooks=dict(logger=None),
            randomness=dict(seed=seed),
            resume=resume,
        )
        with weights_only():  # as MMEngine 0.10.7 cannot read its own
            return runner.train().drawn

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
    monkeypatch.setattr(epoch_seed, 'get_rank', lambda: 1)
    other_process = train(1, 'rank')
    for numbers in zip(*first, *other_seed, *other_process, strict=True):
        assert len(set(numbers)) == 3 * ITERATIONS
