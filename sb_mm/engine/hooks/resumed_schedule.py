"""Refuse a resume that would not follow the schedule of the config."""

import math
from collections import Counter
from collections.abc import Iterator

from mmengine.hooks import Hook
from mmengine.optim import _ParamScheduler
from mmengine.runner import Runner

from sb_mm.engine.options import arguments_of
from sb_mm.errors import UserInputError, first_few
from sb_mm.registry import HOOKS

_PROGRESS = {'last_step', 'verbose'}


@HOOKS.register_module()
class ResumedScheduleHook(Hook):
    """Compare the schedules of a checkpoint with those of the config.

    MMEngine goes on with the checkpoint's, whatever the config says: a
    training that is resumed with more epochs than before keeps the last
    learning rate of the old schedule, without a word.

    Raises:
        UserInputError: Before the training, if they differ.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare, if the training goes on from the checkpoint."""
        saved = checkpoint.get('param_schedulers')
        asked = runner.param_schedulers
        # A dict is of several optimizers, by their names.
        if not runner.cfg.get('resume') or not isinstance(saved, list):
            return
        changes = [
            f'param_scheduler.{i}.{change}'
            for i, pair in enumerate(zip(asked or [], saved, strict=False))
            for change in _changes(*pair)
        ]
        if len(saved) != len(asked or []):
            changes.append(f'{len(saved)} schedules, not {len(asked or [])}')
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
    """Yield the end of a schedule that was as long as the old training.

    One with a fixed end does not grow with the number of epochs; one that
    ended before the old training did was meant to.
    """
    info = checkpoint['message_hub']['runtime_info']
    before, now = info.get('max_iters', math.inf), runner.max_iters
    schedules = runner.param_schedulers or []
    epoch = len(runner.train_dataloader)
    ends = [s.end * (epoch if s.by_epoch else 1) for s in schedules]
    if ends and before <= max(ends) < now:
        yield f'param_scheduler ends at iteration {max(ends)}, not {now}'


def _changes(asked: _ParamScheduler, saved: dict) -> Iterator[str]:
    """Yield the settings that are another in the checkpoint."""
    own = asked.state_dict()
    settings = (arguments_of(type(asked)) or set()) - _PROGRESS
    # The values that it starts from, such as the optimizer's rate.
    for name in ['base_values', *sorted(settings)]:
        if name in own and name in saved and own[name] != saved[name]:
            yield f'{name} {_short(saved[name])}, not {_short(own[name])}'


def _short(value: object) -> object:
    """Return milestones as a list, and one of a list of equals.

    Such as the rates of parameter groups.
    """
    if isinstance(value, Counter):
        return sorted(value.elements())
    several = isinstance(value, list) and len(set(value)) == 1
    return value[0] if several else value
