"""Random numbers that depend on the epoch, not on what was drawn before."""

import numpy as np
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed

from sb_mm.registry import HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed Python, NumPy and PyTorch by the seed, the epoch and the process.

    MMEngine's checkpoints hold no state of the random numbers, so that a
    resumed run draws again what its first epochs drew. With this hook it
    draws what the uncut run would have drawn, and ends with the same weights
    if the device computes deterministically. Dataloader workers
    (``num_workers``) are seeded by MMEngine and not reached.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed before the loader draws the order of the images."""
        entropy = (runner.seed, runner.epoch, get_rank())
        (seed,) = np.random.SeedSequence(entropy).generate_state(1)
        set_random_seed(int(seed))
