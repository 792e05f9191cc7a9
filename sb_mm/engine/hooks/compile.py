"""Compile what a training computes most of its time: the network."""

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from sb_mm.errors import UserInputError
from sb_mm.registry import HOOKS

# Of torch.compile, the modes that replay CUDA graphs.
_WITH_GRAPHS = ('reduce-overhead', 'max-autotune')


@HOOKS.register_module()
class CompileHook(Hook):
    """Let ``torch.compile`` compile backbone and neck for a training.

    That is the model's ``extract_feat``, through which mmpretrain's
    ``ImageClassifier`` and mmdet's detectors of one or two stages train:
    tensors in, tensors out. MMEngine's own
    ``compile=True`` takes all of ``train_step`` with data samples, losses
    and optimizer, which compilers must cut into pieces, and of which CUDA
    graphs would overwrite what the next step needs.

    Args:
        mode: Of ``torch.compile``, such as ``'reduce-overhead'``, which
            replays CUDA graphs on a GPU.
        dynamic: Whether one compilation is for batches of any size. Without,
            the last batch of an epoch, if smaller, has one of its own, and
            all others keep theirs.
        options: Further arguments of ``torch.compile``.

    Raises:
        UserInputError: When the training starts, if the model has no
            ``extract_feat``, or gradients are to be accumulated in the memory
            of CUDA graphs.
    """

    def __init__(
        self, mode: str | None = None, dynamic: bool = False, **options
    ) -> None:
        self.options = dict(options, mode=mode, dynamic=dynamic)

    @property
    def _has_graphs(self) -> bool:
        further = self.options.get('options') or {}
        return self.options['mode'] in _WITH_GRAPHS or bool(
            further.get('triton.cudagraphs')
        )

    def before_train(self, runner: Runner) -> None:
        """Put the compiled function over the model's own."""
        model = _unwrapped(runner.model)
        if not hasattr(model, 'extract_feat'):
            raise UserInputError(
                f'sb_mm.CompileHook compiles extract_feat, which '
                f'{type(model).__name__} does not have: use compile=True.'
            )
        if self._has_graphs and _accumulates(runner.optim_wrapper):
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
        vars(_unwrapped(runner.model)).pop('extract_feat', None)


def _accumulates(optim_wrapper: OptimWrapper) -> bool:
    # MMEngine gives it no public name.
    return getattr(optim_wrapper, '_accumulative_counts', 1) > 1


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model
