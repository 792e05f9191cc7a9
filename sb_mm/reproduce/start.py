"""How a training starts: gradients and gates of the first batches."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor

from sb_mm.engine.hooks.run_info import commit, hardware, versions
from sb_mm.engine.preflight import check_data
from sb_mm.engine.quiet import quiet_logger
from sb_mm.models.layers import ChannelAttention
from sb_mm.paper.cells import Cell
from sb_mm.paper.study import MeasuredStart

from .recipe import Recipe, check_seeds


@dataclass(frozen=True)
class Start:
    """What the first batch of a training shows, averaged over seeds.

    Attributes:
        gradient: Norm of the whole gradient.
        spread: Standard deviation over the images of a gate's value,
            averaged over gates and layers; None without attention by gates.
    """

    gradient: float
    spread: float | None


def documented(
    cell: Cell, recipe: Recipe, seeds: Sequence[int], start: Start
) -> MeasuredStart:
    """Return what was measured, with all it depends on."""
    return MeasuredStart(
        cell=cell.id,
        options=[f'{k}={v}' for k, v in sorted(recipe.options.items())],
        seeds=list(seeds),
        gradient=start.gradient,
        spread=start.spread,
        hardware=hardware(),
        versions=versions(),
        commit=commit(),
        date=date.today().isoformat(),
    )


def measure_start(cell: Cell, recipe: Recipe, seeds: Sequence[int]) -> Start:
    """Measure a cell's networks as they are before the first step.

    Args:
        cell: Of a classifier.
        recipe: What is changed of the cell.
        seeds: Of the weights and the order of the images; one batch each.

    Raises:
        UserInputError: If the data or an option cannot be used.
    """
    check_seeds(list(seeds))
    found = [_measure(cell, recipe, seed) for seed in seeds]
    spreads = [s.spread for s in found if s.spread is not None]
    return Start(
        mean(s.gradient for s in found), mean(spreads) if spreads else None
    )


def _measure(cell: Cell, recipe: Recipe, seed: int) -> Start:
    with tempfile.TemporaryDirectory() as folder:
        cfg = recipe.config(cell, seed, Path(folder))
    check_data(cfg, ('train_dataloader',))
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    torch.manual_seed(seed)
    model = _build(cfg)
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed)))
    data = model.data_preprocessor(batch, training=True)
    spreads: list[float] = []
    with ExitStack() as stack:
        for hook in _watch(model, spreads):
            stack.callback(hook.remove)
        losses = model(**data, mode='loss')
    model.parse_losses(losses)[0].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return Start(norm.item(), mean(spreads) if spreads else None)


def _build(cfg: Config) -> BaseModel:
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model)
    with quiet_logger():
        model.init_weights()
    return model.train()


def _watch(model: BaseModel, spreads: list[float]) -> Iterator:
    """Let every gate add its spread to a list."""
    for module in model.modules():
        if isinstance(module, ChannelAttention):
            yield module.gate.register_forward_hook(
                lambda _, __, logits, layer=module: spreads.append(
                    _spread(layer.gate_function(logits))
                )
            )


def _spread(gates: Tensor) -> float:
    return gates.detach().std(0).mean().item()
