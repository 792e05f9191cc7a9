"""What lets a resumed training be the one that was not cut."""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.optim import _ParamScheduler
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed

from sb_mm.engine.checks.options import arguments_of
from sb_mm.errors import UserInputError, first_few
from sb_mm.registry import HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed Python, NumPy and PyTorch by the seed, the epoch and the process.

    MMEngine's checkpoints hold no state of the random numbers. With this hook
    a resumed training draws what the uncut one would have drawn, but in
    dataloader workers, which MMEngine seeds.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed before the loader draws the order of the images."""
        entropy = (runner.seed, runner.epoch, get_rank())
        (seed,) = np.random.SeedSequence(entropy).generate_state(1)
        set_random_seed(int(seed))


@HOOKS.register_module()
class ValidateResumedHook(Hook):
    """Run the validation that was due when the checkpoint was written.

    A training that is cut between the two would never have that number, and
    after the last epoch no result at all.
    """

    # After those that change the model for the training, and after the one
    # that keeps the best checkpoint has found its folder.
    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Validate, if a validation was due at that epoch or iteration."""
        loop = runner.train_loop
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        done = runner.epoch if by_epoch else runner.iter
        last = loop.max_epochs if by_epoch else loop.max_iters
        loop._decide_current_val_interval()  # of dynamic_intervals
        due = done == last or not done % loop.val_interval
        if runner.val_loop and due and done >= max(1, loop.val_begin):
            runner.val_loop.run()


@HOOKS.register_module()
class ResumedScheduleHook(Hook):
    """Compare the schedules of a checkpoint with those of the config.

    MMEngine goes on with the checkpoint's, whatever the config says: with
    more epochs than before, at the last learning rate, without a word.

    Raises:
        UserInputError: Before the training, if they differ.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare, if the training goes on from the checkpoint."""
        saved = checkpoint.get('param_schedulers')
        asked = runner.param_schedulers or []
        # A dict is of several optimizers, by their names.
        if not runner.cfg.get('resume') or not isinstance(saved, list):
            return
        changes = [
            f'param_scheduler.{i}.{change}'
            for i, pair in enumerate(zip(asked, saved, strict=False))
            for change in _changes(*pair)
        ]
        if len(saved) != len(asked):
            changes.append(f'{len(saved)} schedules, not {len(asked)}')
        if not runner.cfg.get('schedule_named'):
            changes += _ends_early(runner, checkpoint)
        if changes:
            raise UserInputError(
                'A resume goes on with the schedule of the checkpoint ('
                f'{first_few(changes)}): give its values with --cfg-options, '
                'or start the new schedule from its weights, with '
                '--cfg-options load_from=CHECKPOINT and without --resume.'
            )


def _ends_early(runner: Runner, checkpoint: dict) -> Iterator[str]:
    """Yield the end of a schedule that was as long as the old training."""
    info = checkpoint['message_hub']['runtime_info']
    epoch, now = len(runner.train_dataloader), runner.max_iters
    schedules = runner.param_schedulers or []
    ends = [s.end * (epoch if s.by_epoch else 1) for s in schedules]
    if ends and info.get('max_iters', math.inf) <= max(ends) < now:
        yield f'param_scheduler ends at iteration {max(ends)}, not {now}'


def _changes(asked: _ParamScheduler, saved: dict) -> Iterator[str]:
    own = asked.state_dict()
    settings = (arguments_of(type(asked)) or set()) - {'last_step', 'verbose'}
    # The values that it starts from, such as the optimizer's rate.
    for name in ['base_values', *sorted(settings)]:
        if name in own and name in saved:
            before, now = _short(saved[name]), _short(own[name])
            if before != now:
                yield f'{name} {before}, not {now}'


def _short(value: object) -> object:
    """Return milestones as a list, and one of equals, as of groups' rates."""
    if isinstance(value, Counter):
        return sorted(value.elements())
    several = isinstance(value, list) and len(set(value)) == 1
    return value[0] if several else value
