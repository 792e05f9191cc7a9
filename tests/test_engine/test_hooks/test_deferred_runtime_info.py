"""The log says the same, and the device is asked for it less often."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from torch import nn

from sb_mm.checkpoint import weights_only
from sb_mm.engine.hooks import deferred_runtime_info

from ..conftest import tiny_runner

STOCK = dict(type='RuntimeInfoHook')
OURS = dict(type='sb_mm.DeferredRuntimeInfoHook')


class Falling(BaseModel):
    """Two losses, another one in each iteration, and a plain number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 3.0))
        self.calls = 0

    def forward(self, inputs, data_samples=None, mode='loss'):
        self.calls += 1
        loss = self.weight.square().sum()
        return dict(loss_a=loss, loss_b=0.1 * loss, acc=loss.detach() + 1)

    def parse_losses(self, losses):
        loss, values = super().parse_losses(losses)
        return loss, dict(values, calls=self.calls)


@pytest.fixture
def train(tmp_path):
    """Train epochs of 7 iterations with a hook, and return the runner."""

    def run(hook, resume=False, hooks=(), **options):
        logger = dict(type='LoggerHook', interval=3, ignore_last=False)
        runner = tiny_runner(
            Falling(),
            tmp_path / hook['type'],
            7,
            train_cfg=dict(by_epoch=True, max_epochs=2 + resume),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            default_hooks=dict(runtime_info=hook, logger=logger),
            log_processor=dict(window_size=3, **options),
            custom_hooks=list(hooks),
            resume=resume,
        )
        with weights_only():  # as MMEngine 0.10.7 cannot read its own
            runner.train()
        return runner

    return run


def _lines(runner):
    (file,) = Path(runner.work_dir).glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    timed = ('time', 'data_time', 'memory')
    return [{k: v for k, v in x.items() if k not in timed} for x in lines]


@pytest.mark.parametrize('window', ['epoch', 'global', 6])
def test_the_log_is_that_of_mmengine(train, monkeypatch, window):
    """Also of two loggers, and of windows longer than what is kept."""
    monkeypatch.setattr(deferred_runtime_info, '_KEPT', 2)
    wide = dict(data_src='loss', method_name='mean', window_size=window)
    options = dict(
        custom_cfg=[dict(wide, log_name='wide')],
        hooks=[dict(type='LoggerHook', interval=2)],
    )
    stock, ours = (_lines(train(hook, **options)) for hook in (STOCK, OURS))
    assert len(stock) == 2 * (3 + 3)
    names = {'loss', 'loss_a', 'loss_b', 'acc', 'calls', 'lr', 'wide'}
    assert names <= set(stock[0])
    assert ours == stock


def test_losses_are_fetched_when_they_are_logged(train, monkeypatch):
    calls = []
    update = MessageHub.update_scalar

    def note(hub, key, value, *args, **kwargs):
        calls.append((key, value, hub.get_info('iter')))
        return update(hub, key, value, *args, **kwargs)

    monkeypatch.setattr(MessageHub, 'update_scalar', note)
    train(OURS)
    losses = [c for c in calls if c[0] == 'train/loss']
    assert [iteration for _, _, iteration in losses] == [
        *[2] * 3, *[5] * 3, 6, *[9] * 3, *[12] * 3, 13,
    ]  # fmt: skip
    # Numbers, and so without the graph that holds an iteration's memory.
    assert all(isinstance(value, float) for _, value, _ in losses)


def test_only_the_newest_values_are_kept_of_a_resumed_training(
    train, monkeypatch
):
    monkeypatch.setattr(deferred_runtime_info, '_KEPT', 4)
    train(OURS)
    buffers = train(OURS, resume=True).message_hub.log_scalars
    kept = {k: len(b.data[0]) for k, b in buffers.items()}
    assert {'train/loss', 'train/lr', 'train/time'} <= set(kept)
    assert {v for k, v in kept.items() if k.startswith('train/')} == {4}
    assert buffers['train/calls'].data[0].tolist() == [4, 5, 6, 7]
