"""The block of MobileNetV2 and MnasNet, with attention at any layer."""

from collections.abc import Callable
from typing import Any

import torch.utils.checkpoint as cp
from mmengine.model import BaseModule
from torch import Tensor, nn

from sb_mm.arguments import check_choice, check_number, check_subset

from .attention_conv import AttentionConvModule, build_attention

ATTENTION_LAYERS = ('expand', 'depthwise', 'project', 'block')


class InvertedResidual(BaseModule):
    """Expand (1x1), depthwise, project (1x1, no activation), add.

    The ``state_dict`` keys are those of mmpretrain's block (``conv.0.*``,
    ...), plus ``conv.<i>.attention.*``, ``attention.*`` of the block, and
    ``shortcut.*``.

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
        attention: Config of the attention, or None.
        attention_conv_cfg: Config of the convolution used where the attention
            stands (DyConv is one), or None for the plain one.
        attention_layers: Where: any of ``'expand'``, ``'depthwise'``,
            ``'project'``, and ``'block'``, the output of the last norm before
            the addition.
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
        hidden_channels: int,
        *,
        kernel_size: int = 3,
        shortcut: bool = False,
        expand: bool = True,
        attention: dict | None = None,
        attention_conv_cfg: dict | None = None,
        attention_layers: tuple[str, ...] = ATTENTION_LAYERS[:3],
        attention_after: str = 'norm',
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_choice('stride', stride, (1, 2))
        check_choice('kernel_size', kernel_size, (3, 5))
        check_number('hidden_channels', hidden_channels, 1, integer=True)
        check_subset('attention_layers', attention_layers, ATTENTION_LAYERS)
        if not expand and hidden_channels != in_channels:
            raise ValueError(
                'hidden_channels must equal in_channels without an expand '
                f'convolution, but got {hidden_channels} and {in_channels}.'
            )
        self.with_cp = with_cp
        same_channels = in_channels == out_channels
        self.use_res_connect = stride == 1 and (same_channels or shortcut)
        norm_cfg = norm_cfg or dict(type='BN')
        act_cfg = act_cfg or dict(type='ReLU6')

        plain = dict(conv_cfg=conv_cfg)
        attended = dict(
            conv_cfg=attention_conv_cfg or conv_cfg,
            attention=attention,
            attention_after=attention_after,
        )

        def conv(layer: str, *sizes: int, **kwargs: Any) -> nn.Module:
            chosen = attended if layer in attention_layers else plain
            return AttentionConvModule(
                *sizes, norm_cfg=norm_cfg, **chosen, **kwargs
            )

        hidden = hidden_channels
        depthwise = conv(
            'depthwise',
            hidden,
            hidden,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=hidden,
            act_cfg=act_cfg,
        )
        project = conv('project', hidden, out_channels, 1, act_cfg=None)
        layers = [depthwise, project]
        if expand:
            first = conv('expand', in_channels, hidden, 1, act_cfg=act_cfg)
            layers.insert(0, first)
        self.conv = nn.Sequential(*layers)
        if self.use_res_connect and not same_channels:
            self.shortcut = conv(
                'shortcut', in_channels, out_channels, 1, act_cfg=None
            )
        else:
            self.shortcut = nn.Identity()
        self.attention = build_attention(
            attention if 'block' in attention_layers else None,
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
        return self._finish(x, self.conv[1:](expanded))

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.attention(y, y)
        return self.shortcut(x) + y if self.use_res_connect else y

    def _run(self, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        if self.with_cp and any(a.requires_grad for a in args):
            return cp.checkpoint(function, *args, use_reentrant=False)
        return function(*args)
