"""The learning rates that a config's schedule gives."""

from uuid import uuid4

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader


class _OneWeight(BaseModel):
    """The smallest thing that MMEngine trains."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, mode):
        return dict(loss=self.weight.sum())


class _RecordRate(Hook):
    def __init__(self):
        self.rates = []

    def before_train_iter(self, runner, *args, **kwargs):
        self.rates.append(runner.optim_wrapper.param_groups[0]['lr'])


def learning_rates(path, epochs, work_dir, batches=2):
    """Return the rate of every iteration of a run of so many epochs."""
    cfg = Config.fromfile(path)
    record = _RecordRate()
    runner = Runner(
        _OneWeight(),
        work_dir=str(work_dir),
        train_dataloader=DataLoader([dict(inputs=torch.zeros(1))] * batches),
        train_cfg=dict(cfg.train_cfg, max_epochs=epochs),
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler,
        default_hooks=dict(checkpoint=None, logger=None),
        custom_hooks=[record],
        log_level='ERROR',
        # MMEngine names its loggers so; by default after the second.
        experiment_name=uuid4().hex,
    )
    runner.train()
    return record.rates
