"""What attention does to a network's features, measured once an epoch."""

import copy
import json
import math
import os.path as osp
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sb_mm.arguments import check_number
from sb_mm.models.layers import (
    AttentionConvModule,
    ChannelAttention,
    ShiftBalance,
    SqueezeExcite,
)
from sb_mm.registry import HOOKS

STATS_FILE = 'attention_stats.json'
# Ends of the gating functions that saturate at both.
GATE_ENDS: dict[Callable[[Tensor], Tensor], tuple[float, float]] = {
    torch.tanh: (-1.0, 1.0),
    torch.sigmoid: (0.0, 1.0),
}
_MARGIN = 0.05


@HOOKS.register_module()
class AttentionStatsHook(Hook):
    r"""Measure once an epoch what attention does to the features.

    After a training epoch, the main process runs the network in evaluation
    mode on the last training batches, as they came from the loader. Weights,
    statistics, modes and random numbers stay as they were. Each layer is an
    :class:`AttentionConvModule`, with or without attention, or the output of
    a block with attention. With :math:`T(x)` its trunk and :math:`g(F(x))`
    the gate's values ``(N, C)``:

    - ``trunk_std``, ``output_std``: standard deviation of :math:`T(x)` and of
      what the attention makes of it, over all elements. Without attention
      both are that of the norm's output.
    - ``saturated``, of tanh and sigmoid gates: share of the gate values less
      than 0.05 away from an end of the function's range.
    - ``inactivated``, of Squeeze-and-Excite: share of the **channels** whose
      gate, averaged over the images, is below 0.05. A gate that closes for
      some images is attention at work; a channel that it closes for all of
      them is lost to the network, and that is what is counted.
    - ``lambda_mean``, ``lambda_std``, of Shift-and-Balance: mean and standard
      deviation of the learned shift range over the channels.

    They go to the visualiser's back ends, such as TensorBoard, as
    ``attention/<layer>/<metric>`` by epoch, and to
    ``<log folder>/vis_data/attention_stats.json``, a line an epoch:
    ``{"epoch": 1, "layers": {<layer>: {"kind": ..., <metric>: ...}}}``, with
    the layers in the order of the network, and null for what is not finite.

    Args:
        num_batches: Batches to measure on. The last one of an epoch can be
            small: take more, or set ``drop_last`` of the loader.

    Raises:
        ValueError: If ``num_batches`` is not a positive integer.

    Note:
        It counts epochs. An iteration-based loop has a single one, so it
        measures at the end of the training only.
    """

    def __init__(self, num_batches: int = 1) -> None:
        check_number('num_batches', num_batches, 1, integer=True)
        self.batches: deque = deque(maxlen=num_batches)
        self.enabled = True

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Warn, once, if there is nothing to measure."""
        self.enabled = any(attention_layers(_unwrapped(runner)))
        if not self.enabled:
            runner.logger.warning(
                'AttentionStatsHook measures nothing: the model has no '
                'sb_mm.AttentionConvModule. Use a backbone of sb_mm, or '
                'remove the hook from custom_hooks.'
            )

    @master_only
    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Keep a copy of one of the last batches.

        Before the iteration, because a data preprocessor may train on, and
        so change, the very tensors of the batch (mmpretrain's CutMix does).
        """
        first = len(runner.train_dataloader) - self.batches.maxlen
        if self.enabled and batch_idx >= first:
            self.batches.append(copy.deepcopy(data_batch))

    @master_only
    def after_train_epoch(self, runner: Runner) -> None:
        """Measure and log."""
        if not self.batches:
            return
        layers = measure_attention(_unwrapped(runner), self.batches)
        self.batches.clear()
        epoch = runner.epoch + 1
        scalars = {
            f'attention/{name}/{metric}': value
            for name, record in layers.items()
            for metric, value in record.items()
            if isinstance(value, float)
        }
        runner.visualizer.add_scalars(scalars, step=epoch)
        file = Path(osp.join(runner.log_dir, 'vis_data', STATS_FILE))
        file.parent.mkdir(parents=True, exist_ok=True)
        record = dict(epoch=epoch, layers=layers)
        with file.open('a') as lines:
            lines.write(json.dumps(record, allow_nan=False) + '\n')


@dataclass
class ObservedLayer:
    """A layer of a network, and where its output can be seen.

    Attributes:
        name: Dotted path in the network.
        attention: The layer's attention.
        place: The module whose output is the layer's: the attention, or
            what would come before it.
    """

    name: str
    attention: nn.Module
    place: nn.Module

    def observe(
        self, function: Callable[[Tensor, Tensor], None]
    ) -> RemovableHandle:
        """Call ``function(trunk, output)`` in every forward pass.

        Both are ``(N, C, H, W)``, and a later activation may overwrite them:
        the function must not keep them.
        """

        def hook(_: nn.Module, args: tuple, output: Tensor) -> None:
            trunk = args[0] if self.place is self.attention else output
            function(trunk, output)

        return self.place.register_forward_hook(hook)


def attention_layers(model: nn.Module) -> Iterator[ObservedLayer]:
    """Yield the layers that could have attention, in the network's order."""
    for name, module in model.named_modules():
        if isinstance(module, ChannelAttention):
            layer = name.removesuffix('.attention')
            yield ObservedLayer(layer, module, module)
        elif isinstance(module, AttentionConvModule) and not isinstance(
            module.attention, ChannelAttention
        ):
            present = 'attention' in module.steps
            place = module.attention if present else module.norm
            yield ObservedLayer(name, module.attention, place or module.conv)


def measure_attention(
    model: BaseModel, batches: Iterable[Any]
) -> dict[str, dict[str, str | float | None]]:
    """Return ``kind`` and metrics by layer, see :class:`AttentionStatsHook`.

    Args:
        model: The network, without a distributed wrapper.
        batches: As they come from a loader; they weigh as they are large.
    """
    stats = []
    with ExitStack() as stack:
        stack.enter_context(_undisturbed(model))
        for layer in attention_layers(model):
            stats.append(LayerStats(layer))
            for handle in stats[-1].watch():
                stack.enter_context(handle)
        for batch in batches:
            run_batch(model, batch)
    # A layer that the network did not use has no output.
    return {s.layer.name: s.record() for s in stats if s.output}


def run_batch(model: BaseModel, batch: dict) -> None:
    """Run the network on a batch of its loader, as far as its raw output."""
    model(**model.data_preprocessor(batch, False), mode='tensor')


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode; restore modes and random numbers after it."""
    modes = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    gpus = {p.device.index for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(gpus), torch.no_grad():
        try:
            yield model.eval()
        finally:
            for module, training in modes:
                module.training = training
            random.setstate(python)
            np.random.set_state(numpy)


@dataclass
class LayerStats:
    """Statistics of a layer over several batches."""

    layer: ObservedLayer
    # (elements, mean, variance) of each batch
    trunk: list[tuple[float, ...]] = field(default_factory=list)
    output: list[tuple[float, ...]] = field(default_factory=list)
    gates: list[Tensor] = field(default_factory=list)  # (N, C) each

    def watch(self) -> list[RemovableHandle]:
        """Collect from the layer until the handles are removed."""
        handles = [self.layer.observe(self._add)]
        if isinstance(self.layer.attention, ChannelAttention):
            gate = self.layer.attention.gate
            handles.append(gate.register_forward_hook(self._add_logits))
        return handles

    def record(self) -> dict[str, str | float | None]:
        """Return the layer's kind of attention and its metrics."""
        attention = self.layer.attention
        metrics = dict(
            trunk_std=_std(self.trunk), output_std=_std(self.output)
        )
        if self.gates:
            metrics |= _gate_metrics(attention, torch.cat(self.gates))
        finite = {
            k: v if math.isfinite(v) else None for k, v in metrics.items()
        }
        return dict(kind=type(attention).__name__, **finite)

    def _add(self, trunk: Tensor, output: Tensor) -> None:
        for moments, values in ((self.trunk, trunk), (self.output, output)):
            var, mean = torch.var_mean(values.float(), correction=0)
            moments.append((values.numel(), mean.item(), var.item()))

    def _add_logits(self, _: nn.Module, args: tuple, logits: Tensor) -> None:
        gates = self.layer.attention.gate_function(logits)
        self.gates.append(gates.float())


def _std(moments: list[tuple[float, ...]]) -> float:
    """Return the standard deviation over all batches."""
    counts, means, variances = np.array(moments).T
    between = (means - np.average(means, weights=counts)) ** 2
    return float(np.average(variances + between, weights=counts) ** 0.5)


def _gate_metrics(
    attention: ChannelAttention, gates: Tensor
) -> dict[str, float]:
    """Return what only the kind of ``attention`` has, from ``(N, C)``."""
    metrics = {}
    if attention.gate_function in GATE_ENDS:
        low, high = GATE_ENDS[attention.gate_function]
        ended = (gates < low + _MARGIN) | (gates > high - _MARGIN)
        metrics['saturated'] = _share(ended, gates)
    if isinstance(attention, SqueezeExcite):
        means = gates.mean(0)
        metrics['inactivated'] = _share(means < _MARGIN, means)
    if isinstance(attention, ShiftBalance):
        var, mean = torch.var_mean(attention.lambda_.float(), correction=0)
        metrics['lambda_mean'] = mean.item()
        metrics['lambda_std'] = var.sqrt().item()
    return metrics


def _share(marked: Tensor, values: Tensor) -> float:
    """Return the share of the marked ``values``; NaN if one is NaN."""
    return torch.where(values.isnan(), values, marked.float()).mean().item()


def _unwrapped(runner: Runner) -> BaseModel:
    model = runner.model
    return model.module if is_model_wrapper(model) else model
