"""Validate what a resume has loaded, before it trains on."""

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from sb_mm.registry import HOOKS


@HOOKS.register_module()
class ValidateResumedHook(Hook):
    """Run the validation that was due when the checkpoint was written.

    A training that is cut between a checkpoint and its validation would never
    have that number, and after the last epoch no result at all. What was
    logged before is logged again, with the same value.
    """

    # After those that change the model for the training.
    priority = 'LOW'

    def before_train(self, runner: Runner) -> None:
        """Validate, if a validation was due at that epoch or iteration."""
        loop = runner.train_loop
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        done = runner.epoch if by_epoch else runner.iter
        due = done >= max(1, loop.val_begin) and not done % loop.val_interval
        if due and runner.val_loop:
            runner.val_loop.run()
