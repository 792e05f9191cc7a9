"""The learning rates that a config's schedule gives."""

from uuid import uuid4

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader


class _Recorder(BaseModel):
    """The smallest thing that MMEngine trains."""

    def __init__(self):
        super().__init__()
        self.weight, self.rates = torch.nn.Parameter(torch.ones(1)), []

    forward = None

    def train_step(self, data, optim_wrapper):
        self.rates.append(optim_wrapper.param_groups[0]['lr'])
        optim_wrapper.update_params(self.weight.sum())
        return {}


def learning_rates(path, epochs, work_dir, batches=2):
    """Return the rate of every iteration of a run of so many epochs."""
    cfg, model = Config.fromfile(path), _Recorder()
    runner = Runner(
        model,
        work_dir=str(work_dir),
        train_dataloader=DataLoader([0] * batches),
        train_cfg=dict(cfg.train_cfg, max_epochs=epochs),
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler,
        default_hooks=dict(checkpoint=None, logger=None),
        log_level='ERROR',
        # MMEngine names its loggers so; by default after the second.
        experiment_name=uuid4().hex,
    )
    runner.train()
    return model.rates
