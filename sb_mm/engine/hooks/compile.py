"""Compile what a training computes most of its time: the network."""

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sb_mm.engine.build import unwrapped
from sb_mm.errors import UserInputError
from sb_mm.registry import HOOKS


@HOOKS.register_module()
class CompileHook(Hook):
    """Let ``torch.compile`` compile backbone and neck for a training.

    That is ``extract_feat`` of the hosts' models: tensors in, tensors out.
    MMEngine's own ``compile=True`` takes all of ``train_step`` with data
    samples, losses and optimizer, which compilers must cut into pieces, and
    of which CUDA graphs would overwrite what the next step needs.

    Args:
        mode: Of ``torch.compile``, such as ``'reduce-overhead'``.
        dynamic: Compile once for batches of any size. Without it, a smaller
            last batch of an epoch has a compilation of its own.
        options: Further arguments of ``torch.compile``.

    Raises:
        UserInputError: When the training starts, if the model has no
            ``extract_feat``, or CUDA graphs are to accumulate gradients.
    """

    def __init__(
        self, mode: str | None = None, dynamic: bool = False, **options
    ) -> None:
        self.options = dict(options, mode=mode, dynamic=dynamic)

    def before_train(self, runner: Runner) -> None:
        """Put the compiled function over the model's own."""
        model = unwrapped(runner.model)
        if not hasattr(model, 'extract_feat'):
            raise UserInputError(
                f'sb_mm.CompileHook compiles extract_feat, which '
                f'{type(model).__name__} does not have: use compile=True.'
            )
        # MMEngine gives it no public name.
        steps = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        graphs = self.options['mode'] in ('reduce-overhead', 'max-autotune')
        if graphs and steps > 1:
            raise UserInputError(
                'CUDA graphs reuse the memory of the gradients, which '
                'optim_wrapper.accumulative_counts keeps over several '
                'iterations: set it to 1, or give sb_mm.CompileHook a mode '
                'without graphs, such as default.'
            )
        model.extract_feat = torch.compile(model.extract_feat, **self.options)

    def after_train(self, runner: Runner) -> None:
        """Give the model its own function back."""
        # An attribute of the object hides the method of the class.
        vars(unwrapped(runner.model)).pop('extract_feat', None)
