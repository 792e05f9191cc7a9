"""Losses for the log, fetched from the device when they are logged."""

from typing import Any

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.runner import Runner

from sb_mm.registry import HOOKS

# Values of a quantity that are kept, if the log averages over fewer.
_KEPT = 1000


@HOOKS.register_module()
class DeferredRuntimeInfoHook(RuntimeInfoHook):
    """MMEngine's ``RuntimeInfoHook``, which does not stop a GPU each time.

    MMEngine's fetches the losses of every iteration from the device, so that
    the host waits until that iteration is computed, and only then prepares
    the next. It also keeps a million values of each quantity in arrays that
    are copied whole for every new one. This hook fetches the losses of all
    iterations since the last line of the log at once, when the next one is
    due, and keeps as many values as the log averages over, at least 1,000.
    The log says the same.

    For ``default_hooks = dict(runtime_info=dict(type=...))``, in the place of
    MMEngine's. Worth it where an iteration takes milliseconds. The time of an
    iteration in the log is right as an average over the log's ``interval``:
    set ``log_processor.window_size`` to it or to a multiple.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Note when the log is written, and what it averages over."""
        super().before_train(runner)
        self._waiting: list[tuple[str, torch.Tensor]] = []
        hooks = [h for h in runner.hooks if isinstance(h, LoggerHook)]
        self._intervals = [hook.interval for hook in hooks]
        log = runner.log_processor
        windows = [c.get('window_size', 1) for c in log.custom_cfg]
        # In MMEngine's words; of all, it keeps a million.
        sizes = {'epoch': len(runner.train_dataloader), 'global': 10**6}
        windows = [sizes.get(w, w) for w in (*windows, log.window_size)]
        self._kept = max(_KEPT, *windows)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Note the losses; hand them on if the log wants them."""
        # Without their graph, which holds the memory of the iteration.
        self._waiting += [
            (name, torch.as_tensor(value).detach())
            for name, value in (outputs or {}).items()
        ]
        due = [self.every_n_inner_iters(batch_idx, n) for n in self._intervals]
        if any(due) or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self._hand_on(runner)

    def _hand_on(self, runner: Runner) -> None:
        """Fetch what waits, by one transfer."""
        # All of one device, but for what a model computes on the host. Apple's
        # GPUs know no doubles, and a log shows less than 7 digits.
        tensors = [value.float().reshape(()) for _, value in self._waiting]
        tensors = [value.to(tensors[0].device) for value in tensors]
        values = torch.stack(tensors).tolist() if tensors else []
        for (name, _), value in zip(self._waiting, values, strict=True):
            runner.message_hub.update_scalar(f'train/{name}', value)
        self._waiting.clear()
        for name, buffer in runner.message_hub.log_scalars.items():
            if name.startswith('train/'):
                buffer.max_length = self._kept
