"""Losses for the log, fetched from the device when they are logged."""

from typing import Any

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.runner import Runner

from sb_mm.arguments import check_number
from sb_mm.registry import HOOKS


@HOOKS.register_module()
class DeferredRuntimeInfoHook(RuntimeInfoHook):
    """MMEngine's ``RuntimeInfoHook``, which does not stop a GPU each time.

    MMEngine's fetches the losses of every iteration from the device, so that
    the host waits until that iteration is computed, and only then prepares
    the next. It also keeps a million values of each quantity in arrays that
    are copied whole for every new one. This hook fetches the losses of all
    iterations since the last line of the log at once, when the next one is
    due, and keeps the newest values only. The log says the same.

    For ``default_hooks = dict(runtime_info=dict(type=...))``, in the place of
    MMEngine's. Worth it where an iteration takes milliseconds. The time of an
    iteration in the log is right as an average over the log's ``interval``:
    set ``log_processor.window_size`` to it or to a multiple.

    Args:
        keep: How many values of a quantity are kept. More are if the windows
            over which the log averages need them.
    """

    priority = 'VERY_HIGH'

    def __init__(self, keep: int = 1000) -> None:
        check_number('keep', keep, 1, integer=True)
        self.keep = keep
        self._limit: int | None = keep
        self._intervals: list[int] = []
        self._waiting: list[dict[str, Any]] = []

    def before_train(self, runner: Runner) -> None:
        """Note when the log is written, and what it averages over."""
        super().before_train(runner)
        self._waiting.clear()
        self._intervals = [
            hook.interval
            for hook in runner.hooks
            if isinstance(hook, LoggerHook)
        ]
        self._limit = self._needed(runner)

    def _needed(self, runner: Runner) -> int | None:
        """Return how many values the log needs; None for all."""
        log = runner.log_processor
        windows = {log.window_size}
        windows |= {c.get('window_size') for c in log.custom_cfg} - {None}
        if 'global' in windows:
            return None
        epoch = len(runner.train_dataloader)
        sizes = [epoch if size == 'epoch' else size for size in windows]
        return max(self.keep, *sizes)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Note the losses; hand them on if the log wants them."""
        if outputs:
            # Without their graph, which holds the memory of the iteration.
            self._waiting.append({k: _detached(v) for k, v in outputs.items()})
        due = [self.every_n_inner_iters(batch_idx, n) for n in self._intervals]
        last = self.end_of_epoch(runner.train_dataloader, batch_idx)
        if any(due) or last:
            self._hand_on(runner)

    def _hand_on(self, runner: Runner) -> None:
        for values in _fetched(self._waiting):
            for name, value in values.items():
                runner.message_hub.update_scalar(f'train/{name}', value)
        self._waiting.clear()
        if self._limit is None:
            return
        for name, buffer in runner.message_hub.log_scalars.items():
            if name.startswith('train/'):
                buffer.max_length = self._limit


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _fetched(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records with numbers for tensors, by one transfer."""
    # Apple's GPUs know no doubles, and a log shows less than 7 digits.
    tensors = [
        value.float().reshape(())
        for record in records
        for value in record.values()
        if isinstance(value, torch.Tensor)
    ]
    # All of one device, but for what a model computes on the host.
    tensors = [value.to(tensors[0].device) for value in tensors]
    numbers = iter(torch.stack(tensors).tolist() if tensors else [])
    return [
        {
            name: next(numbers) if isinstance(value, torch.Tensor) else value
            for name, value in record.items()
        }
        for record in records
    ]
