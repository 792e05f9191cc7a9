"""The block of ShuffleNetV2, with attention at any layer."""

from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmengine.model import BaseModule
from torch import Tensor, nn

from sb_mm.arguments import check_choice, check_subset

from .attention_conv import AttentionConvModule

SHUFFLE_LAYERS = ('expand', 'depthwise', 'project')


class ShuffleBlock(BaseModule):
    """Two branches, whose channels are then interleaved.

    With stride 1, one half of the channels passes unchanged and the other
    goes through pointwise (``'expand'``), depthwise and pointwise
    (``'project'``) convolutions. With stride 2 (down-sampling), both branches
    see all channels, and the first has a depthwise and a pointwise
    convolution, with attention by the same names.

    The ``state_dict`` keys are those of mmpretrain's block
    (``branch2.0.conv.*``, ...), plus ``branch<i>.<j>.attention.*``.

    Args:
        in_channels: Input channels.
        out_channels: Output channels; even.
        stride: 1 or 2 pixels.
        attention: Config of the attention, or None. Behind a depthwise
            convolution it has as many hidden units as elsewhere.
        attention_conv_cfg: Config of the convolution used where the attention
            stands (DyConv is one), or None for the plain one.
        attention_layers: Where: any of ``'expand'``, ``'depthwise'``,
            ``'project'``.
        attention_after: See :class:`AttentionConvModule`.
        conv_cfg: Config of the convolutions elsewhere.
        norm_cfg: Config of the normalisation.
        act_cfg: Config of the activation.
        with_cp: Recompute the block in the backward pass to save memory.
        init_cfg: Initialisation, see mmengine's ``BaseModule``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        attention: dict | None = None,
        attention_conv_cfg: dict | None = None,
        attention_layers: tuple[str, ...] = SHUFFLE_LAYERS,
        attention_after: str = 'norm',
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_choice('stride', stride, (1, 2))
        check_subset('attention_layers', attention_layers, SHUFFLE_LAYERS)
        if out_channels % 2 or (stride == 1 and in_channels != out_channels):
            raise ValueError(
                'out_channels must be even, and with stride 1 equal to '
                f'in_channels, but got {out_channels} and {in_channels}.'
            )
        self.stride = stride
        self.with_cp = with_cp
        norm_cfg = norm_cfg or dict(type='BN')
        act_cfg = act_cfg or dict(type='ReLU')
        attended = dict(
            conv_cfg=attention_conv_cfg or conv_cfg,
            attention=attention,
            attention_after=attention_after,
            reduce_depthwise=False,
        )

        def conv(layer: str, *sizes: int, **kwargs: Any) -> nn.Module:
            plain = dict(conv_cfg=conv_cfg)
            chosen = attended if layer in attention_layers else plain
            return AttentionConvModule(
                *sizes, norm_cfg=norm_cfg, **chosen, **kwargs
            )

        def depthwise(channels: int) -> nn.Module:
            shape = dict(stride=stride, padding=1, groups=channels)
            return conv(
                'depthwise', channels, channels, 3, act_cfg=None, **shape
            )

        half = out_channels // 2
        passed = in_channels if stride == 2 else half
        if stride == 2:
            self.branch1 = nn.Sequential(
                depthwise(in_channels),
                conv('project', in_channels, half, 1, act_cfg=act_cfg),
            )
        self.branch2 = nn.Sequential(
            conv('expand', passed, half, 1, act_cfg=act_cfg),
            depthwise(half),
            conv('project', half, half, 1, act_cfg=act_cfg),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, Cin, H, W)`` to ``(N, Cout, H / stride, W / stride)``."""
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            first, second = self.branch1(x), x
        else:
            first, second = x.chunk(2, dim=1)
        return interleave(first, self.branch2(second))


def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Shuffle the channels of two ``(N, C, H, W)`` into ``(N, 2C, H, W)``.

    Channel ``2i`` is the first's ``i``, channel ``2i + 1`` the second's: the
    concatenation and channel shuffle of ShuffleNetV2 (arXiv:1807.11164).
    """
    return F.channel_shuffle(torch.cat((first, second), dim=1), 2)
