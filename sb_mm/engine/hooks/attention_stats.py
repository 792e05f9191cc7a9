"""What attention does to a network's features, measured once an epoch."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sb_mm.engine.build import unwrapped
from sb_mm.errors import UserInputError
from sb_mm.models.layers import (
    AttentionConvModule,
    ChannelAttention,
    ShiftBalance,
    SqueezeExcite,
)
from sb_mm.registry import HOOKS

STATS_FILE = 'attention_stats.json'
# Ends of the gating functions that saturate at both.
_GATE_ENDS: dict[Callable[[Tensor], Tensor], tuple[float, float]] = {
    torch.tanh: (-1.0, 1.0),
    torch.sigmoid: (0.0, 1.0),
}
_MARGIN = 0.05


@HOOKS.register_module()
class AttentionStatsHook(Hook):
    r"""Measure once an epoch what attention does to the features.

    After a training epoch, the main process runs the network in evaluation
    mode on the epoch's last whole batch, as it came from the loader. Each
    layer is an :class:`AttentionConvModule`, with or without attention, or
    the output of a block with attention. With :math:`T(x)` its trunk and
    :math:`g(F(x))` the gate's values ``(N, C)``:

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
    ``attention/<layer>/<metric>`` by epoch (an iteration-based loop has a
    single one), and to ``<log folder>/vis_data/attention_stats.json``:
    ``{"epoch": 1, "layers": {<layer>: {"kind": ..., <metric>: ...}}}``, with
    the layers in the order of the network, and null for what is not finite.

    Raises:
        UserInputError: When the training starts, if the network has no such
            layers.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    def before_train(self, runner: Runner) -> None:
        """Look for something to measure."""
        if not any(attention_layers(unwrapped(runner.model))):
            raise UserInputError(
                'sb_mm.AttentionStatsHook measures nothing: the model has no '
                'sb_mm.AttentionConvModule. Use a backbone of sb_mm, or '
                'remove the hook.'
            )

    @master_only
    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Keep a copy of the last batch but one: the last may be small.

        Before the iteration, because a data preprocessor may train on, and
        so change, the very tensors of the batch (mmpretrain's CutMix does).
        """
        late = batch_idx + 2 >= len(runner.train_dataloader)
        if late and self._batch is None:
            self._batch = copy.deepcopy(data_batch)

    @master_only
    def after_train_epoch(self, runner: Runner) -> None:
        """Measure and log."""
        if self._batch is None:  # fewer iterations than an epoch has
            return
        layers = measure_attention(unwrapped(runner.model), self._batch)
        self._batch = None
        epoch = runner.epoch + 1
        scalars = {
            f'attention/{name}/{metric}': value
            for name, record in layers.items()
            for metric, value in record.items()
            if isinstance(value, float)
        }
        runner.visualizer.add_scalars(scalars, step=epoch)
        file = Path(runner.log_dir, 'vis_data', STATS_FILE)
        file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(dict(epoch=epoch, layers=layers), allow_nan=False)
        with file.open('a') as lines:
            lines.write(line + '\n')


class ObservedLayer(NamedTuple):
    """A layer of a network, and where its output can be seen."""

    name: str  # dotted path in the network
    attention: nn.Module
    # Its output is the layer's: the attention, or what would come before it.
    place: nn.Module

    def observe(
        self, function: Callable[[Tensor, Tensor], None]
    ) -> RemovableHandle:
        """Call ``function(trunk, output)`` in every forward pass.

        Both are ``(N, C, H, W)``; a later activation may overwrite them.
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


@torch.no_grad()
def measure_attention(
    model: BaseModel, batch: dict
) -> dict[str, dict[str, str | float | None]]:
    """Return ``kind`` and metrics by layer, see :class:`AttentionStatsHook`.

    Args:
        model: Left in evaluation mode, which a training leaves by itself.
        batch: As it comes from a loader.
    """
    records: dict[str, dict] = {}
    with ExitStack() as stack:
        for layer in attention_layers(model):
            records[layer.name] = dict(kind=type(layer.attention).__name__)
            for handle in _watch(layer, records[layer.name]):
                stack.enter_context(handle)
        run_batch(model.eval(), batch)
    return {
        name: {k: _finite(v) for k, v in record.items()}
        for name, record in records.items()
        if 'output_std' in record  # else the network did not use the layer
    }


def run_batch(model: BaseModel, batch: dict) -> None:
    """Run the network on a batch of its loader, as far as its raw output."""
    model(**model.data_preprocessor(batch, False), mode='tensor')


def _watch(layer: ObservedLayer, record: dict) -> Iterator[RemovableHandle]:
    """Let a layer's next forward pass write into its record."""

    def measure(trunk: Tensor, output: Tensor) -> None:
        record.update(trunk_std=_std(trunk), output_std=_std(output))

    def measure_gate(_: nn.Module, args: tuple, logits: Tensor) -> None:
        gates = layer.attention.gate_function(logits).float()
        record.update(_gate_metrics(layer.attention, gates))

    yield layer.observe(measure)
    if isinstance(layer.attention, ChannelAttention):
        yield layer.attention.gate.register_forward_hook(measure_gate)


def _gate_metrics(
    attention: ChannelAttention, gates: Tensor
) -> dict[str, float]:
    """Return what only the kind of ``attention`` has, from ``(N, C)``."""
    metrics = {}
    if attention.gate_function in _GATE_ENDS:
        low, high = _GATE_ENDS[attention.gate_function]
        ended = (gates < low + _MARGIN) | (gates > high - _MARGIN)
        metrics['saturated'] = _share(ended, gates)
    if isinstance(attention, SqueezeExcite):
        means = gates.mean(0)
        metrics['inactivated'] = _share(means < _MARGIN, means)
    if isinstance(attention, ShiftBalance):
        metrics['lambda_mean'] = attention.lambda_.mean().item()
        metrics['lambda_std'] = _std(attention.lambda_)
    return metrics


def _std(values: Tensor) -> float:
    return values.float().std(correction=0).item()


def _share(marked: Tensor, values: Tensor) -> float:
    """Return the share of the marked ``values``; NaN if one is NaN."""
    return torch.where(values.isnan(), values, marked.float()).mean().item()


def _finite(value: str | float) -> str | float | None:
    return value if isinstance(value, str) or math.isfinite(value) else None
