"""Stop a training whose loss is no number any more."""

from collections.abc import Iterable

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from sb_mm.arguments import check_number
from sb_mm.errors import DivergedError
from sb_mm.registry import HOOKS


@HOOKS.register_module()
class DivergenceHook(Hook):
    """Stop at a loss or at weights that are not finite.

    The weights are looked at before they are validated or saved: the last
    step may have spoiled them after a finite loss.

    Args:
        interval: Iterations between two looks at the loss, which wait for the
            device and the other processes; an epoch's end has one, too.

    Raises:
        DivergedError: In the training.
    """

    def __init__(self, interval: int = 50) -> None:
        check_number('interval', interval, 1, integer=True)
        self.interval = interval

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: object = None,
        outputs: dict | None = None,
    ) -> None:
        """Look at the loss, if it is time to."""
        done = runner.iter + 1
        due = self.every_n_train_iters(runner, self.interval)
        if due or self.end_of_epoch(runner.train_dataloader, batch_idx):
            losses = [v for k, v in (outputs or {}).items() if 'loss' in k]
            _look(runner, 'loss', losses, done)
        hooks = [h for h in runner.hooks if isinstance(h, CheckpointHook)]
        if any(
            self.every_n_train_iters(runner, h.interval, h.save_begin)
            or self.is_last_train_iter(runner)
            for h in hooks
            if not h.by_epoch
        ):
            _look(runner, 'weights', runner.model.parameters(), done)

    def after_train_epoch(self, runner: Runner) -> None:
        """Look at the weights before a checkpoint is written."""
        _look(runner, 'weights', runner.model.parameters(), runner.iter)

    def before_val(self, runner: Runner) -> None:
        """Look at the weights, if a training brought them here."""
        if runner.iter:
            self.after_train_epoch(runner)


def _look(runner: Runner, what: str, values: Iterable, done: int) -> None:
    finite = [torch.as_tensor(v).detach().isfinite().all() for v in values]
    if not finite:
        return
    # Of one that stops alone, the others would wait until they are killed.
    everywhere = torch.stack(finite).all().int()
    all_reduce(everywhere, 'min')
    if not everywhere:
        # The epoch's number grows before what comes after it.
        epoch = (done - 1) // len(runner.train_dataloader) + 1
        raise DivergedError(
            f'The {what} became NaN or infinite by iteration {done} (epoch '
            f'{epoch}): lower the learning rate, or raise the batch size.'
        )
