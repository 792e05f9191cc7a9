"""Random numbers that depend on the epoch, not on what was drawn before."""

import numpy as np
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed

from sb_mm.registry import HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed Python, NumPy and PyTorch again when a training epoch begins.

    With a number made of the run's seed, the epoch and the process' rank.
    MMEngine keeps no state of the random numbers in its checkpoints, so that
    a resumed run draws again what its first epochs drew. With this hook it
    draws what the uncut run would have drawn, and ends with the same weights
    if the device computes deterministically. Several processes draw
    different crops and flips on the device.

    Note:
        The processes of a loader (``num_workers``) are seeded by MMEngine
        and not reached. The order of the images is the sampler's, which
        takes the seed of ``randomness``.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed before the loader draws the order of the images."""
        entropy = (runner.seed, runner.epoch, get_rank())
        (seed,) = np.random.SeedSequence(entropy).generate_state(1)
        set_random_seed(int(seed))
