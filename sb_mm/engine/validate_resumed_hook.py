"""Validate what a resume has loaded, before it trains on."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from sb_mm.registry import HOOKS


@HOOKS.register_module()
class ValidateResumedHook(Hook):
    """Run the validation that belongs to the epoch of the checkpoint.

    A run that is cut between a checkpoint and the validation of its epoch
    would never have that number, and after the last epoch no result at all.
    What was logged before is logged again, with the same value.
    """

    # After those that change the model for the training, and after the one
    # that keeps the best checkpoint has found its folder.
    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Validate, if a validation was due after that epoch."""
        loop = runner.train_loop
        due = runner.epoch >= max(1, loop.val_begin)
        if due and runner.val_loop and runner.epoch % loop.val_interval == 0:
            runner.val_loop.run()
