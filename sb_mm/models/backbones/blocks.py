"""The blocks of MobileNetV2, MnasNet and ShuffleNetV2, with attention."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from sb_mm.arguments import check_choice, check_number, check_subset

from ..layers import AttentionConvModule, build_attention

LAYERS = ('expand', 'depthwise', 'project')


class AttentionBlock(BaseModule):
    """A block of named layers, with attention at those that are asked for.

    Args:
        attention: Config of the attention, or None.
        attention_conv_cfg: Config of the convolution used where the attention
            stands (DyConv is one), or None for the plain one.
        attention_layers: Where: any of the class's ``attention_places``.
        attention_after: See :class:`AttentionConvModule`.
        conv_cfg: Config of the convolutions elsewhere.
        norm_cfg: Config of the normalisation, or None.
        act_cfg: Config of the activation, or None.
        with_cp: Recompute the block in the backward pass to save memory.
        init_cfg: Initialisation, see mmengine's ``BaseModule``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    attention_places: tuple[str, ...] = LAYERS
    # See AttentionConvModule.
    reduce_depthwise = True

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
        check_subset(
            'attention_layers', attention_layers, self.attention_places
        )
        self.with_cp = with_cp
        self._attention_layers = attention_layers
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

    def _run(self, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        if self.with_cp and any(a.requires_grad for a in args):
            return cp.checkpoint(function, *args, use_reentrant=False)
        return function(*args)


class InvertedResidual(AttentionBlock):
    """Expand (1x1), depthwise, project (1x1, no activation), add.

    The ``state_dict`` keys are those of mmpretrain's block (``conv.0.*``,
    ...), plus ``conv.<i>.attention.*``, ``attention.*`` of the block, and
    ``shortcut.*``. The attention may stand at the ``'block'`` as well: at the
    output of the last norm, before the addition.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        stride: 1 or 2 pixels, of the depthwise convolution. The input is
            added to the output where the stride is 1 and the channels agree.
        hidden_channels: Channels between expand and project.
        kernel_size: 3 or 5 pixels, of the depthwise convolution.
        shortcut: Where the stride is 1 and the channels differ, add the input
            too, through a 1x1 convolution with norm (the CIFAR-10 network).
        expand: Whether there is an expand convolution; without one,
            ``hidden_channels`` must equal ``in_channels``.
        **kwargs: See :class:`AttentionBlock`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    attention_places = (*LAYERS, 'block')

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        hidden_channels: int,
        *,
        kernel_size: int = 3,
        shortcut: bool = False,
        expand: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        check_choice('stride', stride, (1, 2))
        check_choice('kernel_size', kernel_size, (3, 5))
        check_number('hidden_channels', hidden_channels, 1, integer=True)
        if not expand and hidden_channels != in_channels:
            raise ValueError(
                'hidden_channels must equal in_channels without an expand '
                f'convolution, but got {hidden_channels} and {in_channels}.'
            )
        hidden = hidden_channels
        depthwise = self._conv(
            'depthwise',
            hidden,
            hidden,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=hidden,
        )
        project = self._conv('project', hidden, out_channels, 1, act_cfg=None)
        layers = [depthwise, project]
        if expand:
            layers.insert(0, self._conv('expand', in_channels, hidden, 1))
        self.conv = Sequential(*layers)
        same_channels = in_channels == out_channels
        self.use_res_connect = stride == 1 and (same_channels or shortcut)
        self.shortcut = nn.Identity()
        if self.use_res_connect and not same_channels:
            self.shortcut = self._conv(
                'shortcut', in_channels, out_channels, 1, act_cfg=None
            )
        at_block = 'block' in self._attention_layers
        self.attention = build_attention(
            self._attended['attention'] if at_block else None,
            out_channels,
            out_channels,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, Cin, H, W)`` to ``(N, Cout, H / stride, W / stride)``."""
        return self._run(self._whole, x)

    def forward_with_expansion(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the expand convolution's output too.

        Returns:
            The activated output of the expand convolution, ``(N, Chid, H,
            W)``, and the output of the block.
        """
        expanded = self._run(self.conv[0], x)
        return expanded, self._run(self._rest, x, expanded)

    def _whole(self, x: Tensor) -> Tensor:
        return self._finish(x, self.conv(x))

    def _rest(self, x: Tensor, expanded: Tensor) -> Tensor:
        return self._finish(x, self.conv[2](self.conv[1](expanded)))

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.attention(y, y)
        return self.shortcut(x) + y if self.use_res_connect else y


class ShuffleBlock(AttentionBlock):
    """Two branches, whose channels are then interleaved.

    With stride 1, one half of the channels passes unchanged and the other
    goes through pointwise (``'expand'``), depthwise and pointwise
    (``'project'``) convolutions. With stride 2 (down-sampling), both branches
    see all channels, and the first has a depthwise and a pointwise
    convolution, with attention by the same names. Behind a depthwise
    convolution the gate has as many hidden units as elsewhere.

    The ``state_dict`` keys are those of mmpretrain's block
    (``branch2.0.conv.*``, ...), plus ``branch<i>.<j>.attention.*``.

    Args:
        in_channels: Input channels.
        out_channels: Output channels; even.
        stride: 1 or 2 pixels.
        act_cfg: Config of the activation, or None.
        **kwargs: See :class:`AttentionBlock`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    reduce_depthwise = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        act_cfg: dict | None = dict(type='ReLU'),
        **kwargs,
    ) -> None:
        super().__init__(act_cfg=act_cfg, **kwargs)
        check_choice('stride', stride, (1, 2))
        if out_channels % 2 or (stride == 1 and in_channels != out_channels):
            raise ValueError(
                'out_channels must be even, and with stride 1 equal to '
                f'in_channels, but got {out_channels} and {in_channels}.'
            )
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
