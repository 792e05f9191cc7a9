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
