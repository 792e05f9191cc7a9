"""MobileNetV2 with attention in its inverted residual blocks."""

from collections.abc import Sequence

from mmengine.model import Sequential
from torch import nn

from sb_mm.arguments import check_number, check_subset, make_divisible
from sb_mm.registry import MODELS

from .base import TORCH_INIT, AttentionBackbone
from .blocks import InvertedResidual


@MODELS.register_module()
class AttentionMobileNetV2(AttentionBackbone):
    """MobileNetV2 (arXiv:1801.04381) with any attention at any layer.

    Widths, strides and ``state_dict`` keys of the trunk are those of
    mmpretrain's ``MobileNetV2``, so published weights load with
    ``init_cfg=dict(type='Pretrained', prefix='backbone.', checkpoint=...)``.

    Args:
        widen_factor: Multiplies the channels of every stage; rounded to
            multiples of 8.
        out_indices: 0-6 for ``layer1`` to ``layer7`` and 7 for the last
            convolution.
        expand_indices: Stages of whose first block the expand convolution's
            activated output is returned as well, from 1-6: the first has no
            expand convolution. SSDLite taps stage 5 so.
        frozen_stages: -1 to 7.
        **kwargs: These and others: see :class:`~.base.AttentionBackbone`.
    """

    # Per stage: expansion (None: no such convolution), channels at width 1,
    # blocks, stride of the first, kernel size of the depthwise convolutions.
    arch_settings = (
        (None, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 32, 3, 2, 3),
        (6, 64, 4, 2, 3),
        (6, 96, 3, 1, 3),
        (6, 160, 3, 2, 3),
        (6, 320, 1, 1, 3),
    )
    # Channels at every width; None: 32 times the width, and 1280 at least.
    stem_channels: int | None = None
    last_channels: int | None = None
    stem_stride = 2
    shortcut = False  # see InvertedResidual

    def __init__(
        self,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (7,),
        expand_indices: Sequence[int] = (),
        frozen_stages: int = -1,
        **kwargs,
    ) -> None:
        check_number('widen_factor', widen_factor, 0, open_low=True)
        if expand_indices:
            expanded = [i for i, s in enumerate(self.arch_settings) if s[0]]
            check_subset('expand_indices', expand_indices, expanded)
        super().__init__(out_indices, frozen_stages, **kwargs)
        self.expand_indices = expand_indices
        channels = self.stem_channels or make_divisible(32 * widen_factor)
        shape = dict(stride=self.stem_stride, padding=1)
        self.conv1 = self._plain_conv(3, channels, 3, **shape)
        for i, (_, width, *_) in enumerate(self.arch_settings):
            out_channels = make_divisible(width * widen_factor)
            stage = self._make_stage(i, channels, out_channels)
            self.add_module(f'layer{i + 1}', stage)
            channels = out_channels
        last = self.last_channels or int(1280 * max(1.0, widen_factor))
        self.conv2 = self._plain_conv(channels, last, 1)
        self._finish()

    @property
    def stages(self) -> list[nn.Module]:
        """The stages, shallow to deep, and the last convolution."""
        numbers = range(1, len(self.arch_settings) + 1)
        return [*(getattr(self, f'layer{i}') for i in numbers), self.conv2]

    def _make_stage(
        self, index: int, in_channels: int, out_channels: int
    ) -> Sequential:
        expansion, _, blocks, stride, kernel = self.arch_settings[index]
        stage = Sequential()
        for _ in range(blocks):
            block = InvertedResidual(
                in_channels,
                out_channels,
                stride,
                expansion and in_channels * expansion,
                kernel_size=kernel,
                shortcut=self.shortcut,
                **self.layer_cfgs,
            )
            stage.append(block)
            in_channels, stride = out_channels, 1
        return stage


@MODELS.register_module()
class AttentionMobileNetV2CIFAR(AttentionMobileNetV2):
    """The MobileNetV2 of the paper's CIFAR-10 tables, for 32x32 pixels.

    That of the kuangliu/pytorch-cifar recipe: a stem of stride 1 with 16
    channels at every width, stage 2 without stride, an expand convolution in
    the first block too, ReLU, and a 1x1 convolution with BN as the shortcut
    where a block of stride 1 changes the channels. The output is 4x4.

    See :class:`AttentionMobileNetV2` for the arguments; ``expand_indices`` are
    from 0-6.
    """

    arch_settings = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 1, 3),
        *AttentionMobileNetV2.arch_settings[2:],
    )
    stem_channels = 16
    stem_stride = 1
    shortcut = True
    default_init_cfg = TORCH_INIT

    def __init__(
        self, *args, act_cfg: dict | None = dict(type='ReLU'), **kwargs
    ) -> None:
        super().__init__(*args, act_cfg=act_cfg, **kwargs)


@MODELS.register_module()
class SBMobileNetV2(AttentionMobileNetV2):
    """MobileNetV2 with Shift-and-Balance attention, the paper's network.

    Args:
        *args: See :class:`AttentionMobileNetV2`.
        lambda_init, gate: See :class:`.ShiftBalance`.
        hidden_multiplier, dropout, fused: See :class:`.ChannelAttention`.
        **kwargs: See :class:`AttentionMobileNetV2`.
    """

    def __init__(
        self,
        *args,
        lambda_init: float = 0.1,
        gate: str = 'tanh',
        hidden_multiplier: float = 1,
        dropout: float = 0.0,
        fused: bool | None = None,
        **kwargs,
    ) -> None:
        attention = dict(
            type='sb_mm.ShiftBalance',
            lambda_init=lambda_init,
            gate=gate,
            hidden_multiplier=hidden_multiplier,
            dropout=dropout,
            fused=fused,
        )
        super().__init__(*args, attention=attention, **kwargs)


@MODELS.register_module()
class SEMobileNetV2(AttentionMobileNetV2):
    """MobileNetV2 with Squeeze-and-Excite.

    Args:
        *args: See :class:`AttentionMobileNetV2`.
        attention_layers: ``('block',)``, the output of every block, is the
            form of the paper's Table 1; the layers are of Tables 2 and 4.
        hidden_multiplier, dropout, fused: See :class:`.ChannelAttention`.
        **kwargs: See :class:`AttentionMobileNetV2`.
    """

    def __init__(
        self,
        *args,
        attention_layers: Sequence[str] = ('block',),
        hidden_multiplier: float = 1,
        dropout: float = 0.0,
        fused: bool | None = None,
        **kwargs,
    ) -> None:
        attention = dict(
            type='sb_mm.SqueezeExcite',
            hidden_multiplier=hidden_multiplier,
            dropout=dropout,
            fused=fused,
        )
        super().__init__(
            *args,
            attention=attention,
            attention_layers=attention_layers,
            **kwargs,
        )


@MODELS.register_module()
class DyConvMobileNetV2(AttentionMobileNetV2):
    """MobileNetV2 with dynamic convolutions in its blocks.

    Args:
        *args: See :class:`AttentionMobileNetV2`.
        num_kernels: Kernels a layer.
        temperature: Divides the logits of the kernels' shares.
        **kwargs: See :class:`AttentionMobileNetV2`.
    """

    def __init__(
        self,
        *args,
        num_kernels: int = 4,
        temperature: float = 30.0,
        **kwargs,
    ) -> None:
        conv_cfg = dict(
            type='sb_mm.DynamicConv2d',
            num_kernels=num_kernels,
            temperature=temperature,
        )
        super().__init__(*args, attention_conv_cfg=conv_cfg, **kwargs)
