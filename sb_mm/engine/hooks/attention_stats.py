"""What attention does to a network's features, measured once an epoch."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

from sb_mm.engine.build import unwrapped
from sb_mm.errors import UserInputError
from sb_mm.models.layers import (
    AttentionConvModule,
    ChannelAttention,
    ShiftBalance,
    SqueezeExcite,
)
from sb_mm.registry import HOOKS

# Of the gating functions that saturate at both ends.
_GATE_ENDS = {torch.tanh: (-1.0, 1.0), torch.sigmoid: (0.0, 1.0)}
_MARGIN = 0.05


@HOOKS.register_module()
class AttentionStatsHook(Hook):
    r"""Measure once an epoch what attention does to the features.

    The main process runs the network in evaluation mode on the epoch's last
    whole batch. Each layer is an :class:`AttentionConvModule`, with or without
    attention, or the output of a block with attention. With :math:`T(x)` its
    trunk and :math:`g(F(x))` the gate's values ``(N, C)``:

    - ``trunk_std``, ``output_std``: standard deviation of :math:`T(x)` and of
      what the attention makes of it, over all elements. Without attention
      both are that of the norm's output.
    - ``saturated``, of tanh and sigmoid gates: share of the gate values less
      than 0.05 away from an end of the function's range.
    - ``inactivated``, of Squeeze-and-Excite: share of the **channels** whose
      gate, averaged over the images, is below 0.05: lost to the network.
    - ``lambda_mean``, ``lambda_std``, of Shift-and-Balance: mean and standard
      deviation of the learned shift range over the channels.

    The visualiser gets them as ``attention/<layer>/<metric>``, by epoch.

    Raises:
        UserInputError: When the training starts, if there are no such layers.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    def before_train(self, runner: Runner) -> None:
        """Look for something to measure."""
        if not any(_places(unwrapped(runner.model))):
            raise UserInputError(
                'sb_mm.AttentionStatsHook finds no sb_mm.AttentionConvModule: '
                'use a backbone of sb_mm, or remove the hook.'
            )

    @master_only
    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Keep a copy of the last batch but one: the last may be small."""
        late = batch_idx + 2 >= len(runner.train_dataloader)
        if late and self._batch is None:
            # The iteration may change its tensors, as mmpretrain's CutMix.
            self._batch = copy.deepcopy(data_batch)

    @master_only
    def after_train_epoch(self, runner: Runner) -> None:
        """Measure and log."""
        if self._batch is None:  # fewer iterations than an epoch has
            return
        scalars = measure_attention(unwrapped(runner.model), self._batch)
        self._batch = None
        runner.visualizer.add_scalars(scalars, step=runner.epoch + 1)


@torch.no_grad()
def measure_attention(model: BaseModel, batch: dict) -> dict[str, float]:
    """Return the scalars of :class:`AttentionStatsHook`.

    The model stays in evaluation mode; a training leaves that by itself.
    """
    scalars = {}

    def note(
        layer: str, metrics: Callable, _: nn.Module, args: tuple, y: Tensor
    ) -> None:
        for metric, value in metrics(args, y).items():
            scalars[f'attention/{layer}/{metric}'] = value.item()

    with ExitStack() as stack:
        for layer, module, metrics in _places(model):
            hook = partial(note, layer, metrics)
            stack.enter_context(module.register_forward_hook(hook))
        model.eval()(**model.data_preprocessor(batch, False), mode='tensor')
    return scalars


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, Callable]]:
    """Yield a layer, what computes there, and the metrics of this call."""
    for name, module in model.named_modules():
        if isinstance(module, ChannelAttention):
            layer = name.removesuffix('.attention')
            yield layer, module, partial(_stds, True)
            yield layer, module.gate, partial(_gate_metrics, module)
        elif isinstance(module, AttentionConvModule) and not isinstance(
            module.attention, ChannelAttention
        ):
            attends = 'attention' in module.steps  # by somebody else's class
            place = module.attention if attends else module.norm
            yield name, place or module.conv, partial(_stds, attends)


def _stds(attends: bool, args: tuple, output: Tensor) -> dict[str, Tensor]:
    trunk = args[0] if attends else output
    return dict(trunk_std=_std(trunk), output_std=_std(output))


def _gate_metrics(
    attention: ChannelAttention, _: tuple, logits: Tensor
) -> dict[str, Tensor]:
    metrics, gates = {}, attention.gate_function(logits).float()
    if attention.gate_function in _GATE_ENDS:
        low, high = _GATE_ENDS[attention.gate_function]
        ended = (gates < low + _MARGIN) | (gates > high - _MARGIN)
        metrics['saturated'] = ended.float().mean()
    if isinstance(attention, SqueezeExcite):
        metrics['inactivated'] = (gates.mean(0) < _MARGIN).float().mean()
    if isinstance(attention, ShiftBalance):
        metrics['lambda_mean'] = attention.lambda_.mean()
        metrics['lambda_std'] = _std(attention.lambda_)
    return metrics


def _std(values: Tensor) -> Tensor:
    return values.float().std(correction=0)
