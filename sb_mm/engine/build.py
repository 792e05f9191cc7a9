"""Models and dataloaders as MMEngine's runner builds them, without it."""

import copy
from contextlib import AbstractContextManager

from mmengine.config import Config
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader


def scope_of(cfg: Config) -> AbstractContextManager:
    """Look classes up in a config's scope first, as a context."""
    scope = cfg.get('default_scope') or 'mmengine'
    return DefaultScope.overwrite_default_scope(scope)


def build_model(cfg: Config) -> BaseModel:
    """Return the model that the runner would build, with any weights."""
    model = copy.deepcopy(cfg.model)
    # In the configs of mmpretrain it stands beside the model.
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with scope_of(cfg):
        return MODELS.build(model)


def build_loader(cfg: Config, name: str) -> DataLoader:
    """Return ``cfg.test_dataloader`` or another, without its workers."""
    settings = dict(cfg[name], num_workers=0, persistent_workers=False)
    settings.pop('prefetch_factor', None)  # of the dataloader workers
    with scope_of(cfg):
        return Runner.build_dataloader(settings, seed=0)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model without the wrapper of a distributed training."""
    return model.module if is_model_wrapper(model) else model
