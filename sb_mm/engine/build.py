"""Parts of a config or of a runner, on their own."""

import copy
from contextlib import AbstractContextManager

from mmengine.config import Config
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader


def scope_of(cfg: Config) -> AbstractContextManager:
    """Look classes up in a config's scope first, inside of the context."""
    scope = cfg.get('default_scope') or 'mmengine'
    return DefaultScope.overwrite_default_scope(scope)


def build_model(cfg: Config) -> BaseModel:
    """Return a config's model, with whatever weights, as the runner builds it.

    Args:
        cfg: A whole config; not changed.
    """
    model = copy.deepcopy(cfg.model)
    # In the configs of mmpretrain it stands beside the model.
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with scope_of(cfg):
        return MODELS.build(model)


def build_loader(cfg: Config, name: str) -> DataLoader:
    """Return a config's dataloader, without dataloader workers.

    Args:
        cfg: A whole config.
        name: Such as ``'test_dataloader'``.
    """
    settings = dict(cfg[name], num_workers=0, persistent_workers=False)
    settings.pop('prefetch_factor', None)  # of the dataloader workers
    with scope_of(cfg):
        return Runner.build_dataloader(settings, seed=0)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model without the wrapper of a distributed training."""
    return model.module if is_model_wrapper(model) else model
