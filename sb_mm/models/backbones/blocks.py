"""The blocks of MobileNetV2, MnasNet and ShuffleNetV2, with attention."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from sb_mm.arguments import check_subset
from sb_mm.errors import UserInputError

from ..layers import AttentionConvModule, build_attention

LAYERS = ('expand', 'depthwise', 'project')


class AttentionModule(BaseModule):
    """A network or a block of named layers, of which some have attention.

    Args:
        attention: Config of the attention, such as
            ``dict(type='sb_mm.ShiftBalance')``; None for none.
        attention_conv_cfg: Config of the convolution used where the attention
            stands, such as ``dict(type='sb_mm.DynamicConv2d')``.
        attention_layers: Where in every block: any of ``'expand'``,
            ``'depthwise'``, ``'project'``, and of inverted residual blocks
            ``'block'``, which has no convolution of its own.
        attention_after: Where in a layer: behind its ``'conv'``, ``'norm'``
            or ``'act'``.
        conv_cfg: Config of the other convolutions.
        norm_cfg: Config of the normalisation; None for none.
        act_cfg: Config of the activation; None for none.
        with_cp: Recompute blocks in the backward pass to save memory.
        init_cfg: See mmengine's ``BaseModule``.
    """

    attention_places: tuple[str, ...] = (*LAYERS, 'block')
    reduce_depthwise = True  # see AttentionConvModule

    def __init__(
        self,
        *,
        attention: dict | None = None,
        attention_conv_cfg: dict | None = None,
        attention_layers: Sequence[str] = LAYERS,
        attention_after: str = 'norm',
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = dict(type='sb_mm.LevelBatchNorm2d'),
        act_cfg: dict | None = dict(type='ReLU6'),
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        only_conv = attention_conv_cfg and not attention
        places = LAYERS if only_conv else self.attention_places
        check_subset('attention_layers', attention_layers, places)
        chosen = tuple(attention_layers)
        if chosen != LAYERS and not (attention or attention_conv_cfg):
            raise UserInputError(
                f'attention_layers={chosen} has no effect without attention '
                'or attention_conv_cfg: give one, or leave it out.'
            )
        self.with_cp = with_cp
        self._attention_layers = chosen
        self._plain = dict(
            conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg
        )
        self._attended = dict(
            self._plain,
            conv_cfg=attention_conv_cfg or conv_cfg,
            attention=attention,
            attention_after=attention_after,
            reduce_depthwise=self.reduce_depthwise,
        )

    def _conv(
        self, layer: str, *sizes: int, **kwargs: Any
    ) -> AttentionConvModule:
        """Return a layer, with attention if its name is among the chosen."""
        attended = layer in self._attention_layers
        cfgs = self._attended if attended else self._plain
        return AttentionConvModule(*sizes, **{**cfgs, **kwargs})

    def _run(self, function: Callable, x: Tensor) -> Any:
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(function, x, use_reentrant=False)
        return function(x)


class InvertedResidual(AttentionModule):
    """Expand (1x1), depthwise, project (1x1, no activation), add.

    The ``state_dict`` keys are those of mmpretrain's block (``conv.0.*``,
    ...), plus ``conv.<i>.attention.*``, ``shortcut.*``, and ``attention.*`` of
    the ``'block'``: at the output of the last norm, before the addition.

    Args:
        in_channels, out_channels: Of the input and of the output.
        stride: Of the depthwise convolution, in pixels. The input is added to
            the output where the stride is 1 and the channels agree.
        hidden_channels: Channels between expand and project; None for no
            expand convolution.
        kernel_size: Of the depthwise convolution, in pixels; odd.
        shortcut: Where the stride is 1 and the channels differ, add the input
            too, through a 1x1 convolution with norm (the CIFAR-10 network).
        **kwargs: See :class:`AttentionModule`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        hidden_channels: int | None,
        *,
        kernel_size: int = 3,
        shortcut: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        hidden = hidden_channels or in_channels
        shape = dict(stride=stride, padding=kernel_size // 2, groups=hidden)
        depthwise = self._conv(
            'depthwise', hidden, hidden, kernel_size, **shape
        )
        project = self._conv('project', hidden, out_channels, 1, act_cfg=None)
        self.conv = Sequential(depthwise, project)
        if hidden_channels:
            self.conv.insert(0, self._conv('expand', in_channels, hidden, 1))
        same_channels = in_channels == out_channels
        self.use_res_connect = stride == 1 and (same_channels or shortcut)
        self.shortcut = nn.Identity()
        if self.use_res_connect and not same_channels:
            self.shortcut = self._conv(
                'shortcut', in_channels, out_channels, 1, act_cfg=None
            )
        at_block = 'block' in self._attention_layers
        attention = self._attended['attention'] if at_block else None
        self.attention = build_attention(attention, out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, Cin, H, W)`` to ``(N, Cout, H / stride, W / stride)``."""
        return self.forward_with_expansion(x)[1]

    def forward_with_expansion(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the expand convolution's ``(N, Chid, H, W)`` too, first."""
        return self._run(self._with_expansion, x)

    def _with_expansion(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, *others = self.conv
        y = expanded = first(x)
        for layer in others:
            y = layer(y)
        y = self.attention(y, y)
        return expanded, self.shortcut(x) + y if self.use_res_connect else y


class ShuffleBlock(AttentionModule):
    """Two branches, whose channels are then interleaved.

    With stride 1, one half of the channels passes unchanged and the other
    goes through pointwise (``'expand'``), depthwise and pointwise
    (``'project'``) convolutions. With stride 2, both branches see all
    channels, and the first has a depthwise and a pointwise convolution of the
    same names. The ``state_dict`` keys are those of mmpretrain's block
    (``branch2.0.conv.*``, ...), plus ``branch<i>.<j>.attention.*``.

    Args:
        in_channels: Input channels.
        out_channels: Output channels; even, and with stride 1 as many.
        stride: 1 or 2 pixels.
        **kwargs: See :class:`AttentionModule`.
    """

    attention_places = LAYERS
    reduce_depthwise = False

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.stride = stride
        half = out_channels // 2
        passed = in_channels if stride == 2 else half
        if stride == 2:
            self.branch1 = Sequential(
                self._depthwise(in_channels),
                self._conv('project', in_channels, half, 1),
            )
        self.branch2 = Sequential(
            self._conv('expand', passed, half, 1),
            self._depthwise(half),
            self._conv('project', half, half, 1),
        )

    def _depthwise(self, channels: int) -> AttentionConvModule:
        shape = dict(stride=self.stride, padding=1, groups=channels)
        return self._conv(
            'depthwise', channels, channels, 3, act_cfg=None, **shape
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, Cin, H, W)`` to ``(N, Cout, H / stride, W / stride)``."""
        return self._run(self._branches, x)

    def _branches(self, x: Tensor) -> Tensor:
        halves = (self.branch1(x), x) if self.stride == 2 else x.chunk(2, 1)
        first, second = halves
        # Concatenation and channel shuffle of arXiv:1807.11164.
        both = torch.cat((first, self.branch2(second)), dim=1)
        return F.channel_shuffle(both, 2)
