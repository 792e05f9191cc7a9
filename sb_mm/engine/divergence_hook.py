"""Stop a training whose loss is no number any more."""

import json
import math
from pathlib import Path

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sb_mm.arguments import check_number
from sb_mm.files import write_in_one_step
from sb_mm.registry import HOOKS

DIVERGENCE_FILE = 'diverged.json'


class DivergedError(RuntimeError):
    """The loss became infinite or NaN."""


@HOOKS.register_module()
class DivergenceHook(Hook):
    """Stop at a loss that is not finite, and write down where.

    ``<log folder>/vis_data/diverged.json`` gets ``epoch`` and ``iter``, from
    1. The loss does not become finite again, so that it is looked at every
    ``interval`` iterations only: several processes must tell each other, as
    they stop together, whichever of them has the loss.

    Args:
        interval: Iterations between two looks.

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
        """Look at the loss."""
        due = self.every_n_train_iters(runner, self.interval)
        if not due and not self.end_of_epoch(
            runner.train_dataloader, batch_idx
        ):
            return
        loss = _mean_of_all(outputs['loss'])
        if math.isfinite(loss):
            return
        place = dict(epoch=runner.epoch + 1, iter=runner.iter + 1)
        if is_main_process():
            folder = Path(runner.log_dir) / 'vis_data'
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(place) + '\n'
            write_in_one_step(folder / DIVERGENCE_FILE, text)
        raise DivergedError(
            f'The loss is {loss} in iteration {place["iter"]} (epoch '
            f'{place["epoch"]}): the training diverged.'
        )


def _mean_of_all(loss: torch.Tensor) -> float:
    # Of one that stops alone, the others would wait until they are killed.
    total = torch.as_tensor(loss).detach().clone()
    all_reduce(total, 'mean')
    return float(total)
