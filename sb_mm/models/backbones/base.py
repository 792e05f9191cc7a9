"""What the attention backbones share: stages, freezing, published weights."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sb_mm.arguments import check_number, check_subset
from sb_mm.weights import load_pretrained

from ..layers import ConvNormAct
from .blocks import AttentionModule

# He, fan-out, as torchvision draws MobileNetV2 and MnasNet.
HE_INIT = dict(type='Kaiming', layer='Conv2d')
# PyTorch's default for convolutions: uniform in +-1 / sqrt(fan-in). Networks
# whose source code leaves the weights as they are start so.
TORCH_INIT = dict(
    HE_INIT,
    a=5**0.5,
    mode='fan_in',
    nonlinearity='leaky_relu',
    distribution='uniform',
)


class AttentionBackbone(AttentionModule):
    """A stem and stages of blocks, of which some may be frozen.

    Attention sits in the blocks, never in the stem or the last convolution,
    which counts as a stage. A subclass builds the stem ``conv1`` and
    :attr:`stages`, the blocks with ``layer_cfgs``, and calls :meth:`_finish`.

    Args:
        out_indices: Stages whose output is returned, from 0.
        frozen_stages: Freezes the stem and as many stages; -1 nothing.
        norm_eval: Keep batch normalisation on its running statistics.
        init_cfg: ``default_init_cfg`` if None. ``type='Pretrained'`` loads
            the trunk by :func:`sb_mm.weights.load_pretrained`; what it lacks
            is initialised as without it.
        **kwargs: See :class:`~.blocks.AttentionModule`.
    """

    stages: list[nn.Module]  # shallow to deep, without the stem
    # Stages of whose first block the expanded features are returned as well.
    expand_indices: Sequence[int] = ()
    default_init_cfg = HE_INIT

    def __init__(
        self,
        out_indices: Sequence[int],
        frozen_stages: int,
        *,
        norm_eval: bool = False,
        init_cfg: dict | list | None = None,
        **kwargs,
    ) -> None:
        given = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
        random = [c for c in given if c['type'] != 'Pretrained']
        super().__init__(init_cfg=random or self.default_init_cfg, **kwargs)
        self.pretrained = [c for c in given if c['type'] == 'Pretrained']
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.layer_cfgs = kwargs

    def _finish(self) -> None:
        """Check the indices of stages, and freeze."""
        count, frozen = len(self.stages), self.frozen_stages
        if self.out_indices or not self.expand_indices:
            check_subset('out_indices', self.out_indices, range(count))
        # Not the last convolution, as in mmpretrain.
        check_number('frozen_stages', frozen, -1, count - 1, integer=True)
        # Now too, not only in train(): a distributed wrapper looks before.
        self._freeze_stages()

    def _plain_conv(self, *sizes: int, **kwargs: Any) -> ConvNormAct:
        return ConvNormAct(*sizes, **{**self._plain, **kwargs})

    def stem(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to the first stage's input."""
        return self.conv1(x)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the chosen features of images ``(N, 3, H, W)``.

        Shallow to deep, each ``(N, C, H / stride, W / stride)``; a stage's
        expand output comes right before that stage's output.
        """
        x = self.stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            if i in self.expand_indices:
                first, *others = stage
                expanded, x = first.forward_with_expansion(x)
                outs.append(expanded)
                for block in others:
                    x = block(x)
            else:
                x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def init_weights(self) -> None:
        """Initialise at random, then load published weights if asked to."""
        super().init_weights()
        for cfg in self.pretrained:
            options = {k: v for k, v in cfg.items() if k != 'type'}
            load_pretrained(self, **options)

    def train(self, mode: bool = True) -> 'AttentionBackbone':
        """Set the mode; frozen stages stay frozen and in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        for module in self.modules():
            if self.norm_eval and isinstance(module, _BatchNorm):
                module.eval()
        return self

    def switch_to_deploy(self) -> None:
        """Set evaluation mode and fold, see :func:`sb_mm.deploy.fold`."""
        from sb_mm.deploy import fold  # which only who folds needs

        fold(self.eval())

    def _freeze_stages(self) -> None:
        parts = [self.conv1, *self.stages]
        for part in parts[: self.frozen_stages + 1]:
            part.eval().requires_grad_(False)
