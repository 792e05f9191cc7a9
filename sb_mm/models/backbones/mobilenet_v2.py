"""MobileNetV2 with attention in its inverted residual blocks."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from torch import Tensor, nn

from sb_mm.registry import MODELS

from ..layers.arguments import check_number, check_subset, make_divisible
from ..layers.inverted_residual import ATTENTION_LAYERS, InvertedResidual
from .base_backbone import AttentionBackbone


@MODELS.register_module()
class AttentionMobileNetV2(AttentionBackbone):
    """MobileNetV2 (arXiv:1801.04381) with any attention at any layer.

    Widths, strides and ``state_dict`` keys of the trunk are those of
    mmpretrain's ``MobileNetV2``, so published weights load with
    ``init_cfg=dict(type='Pretrained', prefix='backbone.', checkpoint=...)``.
    Attention sits in the inverted residual blocks, never in the stem or the
    last convolution. Without attention it is the static network.

    Args:
        widen_factor: Multiplies the channels of every stage; rounded to
            multiples of 8, the last convolution keeps 1280 up to 1.0.
        out_indices: Stages whose output is returned, 0-6 for ``layer1`` to
            ``layer7`` and 7 for the last convolution.
        expand_indices: Stages (1-6) of whose first block the expand
            convolution's activated output is returned as well. SSDLite taps
            stage 5 so.
        frozen_stages: Freezes the stem (0) and the stages up to this number
            (1-7); -1 freezes nothing.
        attention: Config of the attention, such as
            ``dict(type='sb_mm.ShiftBalance')``; None for none.
        attention_conv_cfg: Config of the convolution used where the attention
            stands, such as ``dict(type='sb_mm.DynamicConv2d')``.
        attention_layers: Where in every block: any of ``'expand'``,
            ``'depthwise'``, ``'project'``, ``'block'``.
        attention_after: Where in a layer: behind its ``'conv'``, ``'norm'``
            or ``'act'``.
        conv_cfg: Config of the other convolutions.
        norm_cfg: Config of the normalisation; ``dict(type='BN')`` if None.
        act_cfg: Config of the activation; ``dict(type='ReLU6')`` if None.
        norm_eval: Keep batch normalisation on its running statistics.
        with_cp: Recompute blocks in the backward pass to save memory.
        init_cfg: Initialisation; He and ones as in mmpretrain if None.

    Raises:
        ValueError: If an argument is out of its range.
    """

    # Per stage: expansion, channels at width 1, blocks, stride of the first.
    arch_settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(
        self,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (7,),
        expand_indices: Sequence[int] = (),
        frozen_stages: int = -1,
        *,
        attention: dict | None = None,
        attention_conv_cfg: dict | None = None,
        attention_layers: Sequence[str] = ('expand', 'depthwise', 'project'),
        attention_after: str = 'norm',
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(frozen_stages, norm_eval, init_cfg)
        check_number('widen_factor', widen_factor, 0, open_low=True)
        check_number('frozen_stages', frozen_stages, -1, 7, integer=True)
        if out_indices or not expand_indices:
            check_subset('out_indices', out_indices, range(8))
        if expand_indices:
            check_subset('expand_indices', expand_indices, range(1, 7))
        # The block's output has no convolution of its own.
        places = ATTENTION_LAYERS[: 3 if attention_conv_cfg else 4]
        check_subset('attention_layers', attention_layers, places)
        self.out_indices = tuple(out_indices)
        self.expand_indices = tuple(expand_indices)
        conv_cfgs = dict(
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg or dict(type='BN'),
            act_cfg=act_cfg or dict(type='ReLU6'),
        )
        block_cfgs = dict(
            **conv_cfgs,
            attention=attention,
            attention_conv_cfg=attention_conv_cfg,
            attention_layers=tuple(attention_layers),
            attention_after=attention_after,
            with_cp=with_cp,
        )
        channels = make_divisible(32 * widen_factor)
        self.conv1 = ConvModule(
            3, channels, 3, stride=2, padding=1, **conv_cfgs
        )
        self.stage_names = []
        for i, (ratio, width, blocks, stride) in enumerate(self.arch_settings):
            out_channels = make_divisible(width * widen_factor)
            stage = _make_stage(
                channels, out_channels, blocks, stride, ratio, block_cfgs
            )
            self._add_stage(f'layer{i + 1}', stage)
            channels = out_channels
        last = int(1280 * max(1.0, widen_factor))
        self._add_stage('conv2', ConvModule(channels, last, 1, **conv_cfgs))
        # Now too, not only in train(): a distributed wrapper looks before.
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the chosen features of images ``(N, 3, H, W)``.

        Returns:
            Shallow to deep, each ``(N, C, H / stride, W / stride)``; a stage's
            expand output comes right before that stage's output.
        """
        x = self.conv1(x)
        outs = []
        for i, name in enumerate(self.stage_names):
            stage = getattr(self, name)
            if i in self.expand_indices:
                expanded, x = stage[0].forward_with_expansion(x)
                outs.append(expanded)
                stage = stage[1:]
            x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)


def _make_stage(
    in_channels: int,
    out_channels: int,
    blocks: int,
    stride: int,
    expand_ratio: int,
    block_cfgs: dict,
) -> nn.Sequential:
    stage = nn.Sequential()
    for _ in range(blocks):
        block = InvertedResidual(
            in_channels,
            out_channels,
            stride,
            in_channels * expand_ratio,
            expand=expand_ratio != 1,
            **block_cfgs,
        )
        stage.append(block)
        in_channels, stride = out_channels, 1
    return stage


@MODELS.register_module()
class SBMobileNetV2(AttentionMobileNetV2):
    """MobileNetV2 with Shift-and-Balance attention, the paper's network.

    Args:
        *args: See :class:`AttentionMobileNetV2`.
        lambda_init: Start value of the learned shift range.
        gate: ``'tanh'``, ``'sigmoid'``, ``'softmax'``, ``'relu'`` or
            ``'none'``.
        hidden_multiplier: Factor on the gate's hidden units.
        dropout: Probability of dropping a hidden unit of the gate.
        **kwargs: See :class:`AttentionMobileNetV2`.
    """

    def __init__(
        self,
        *args,
        lambda_init: float = 0.1,
        gate: str = 'tanh',
        hidden_multiplier: float = 1,
        dropout: float = 0.0,
        **kwargs,
    ) -> None:
        attention = dict(
            type='sb_mm.ShiftBalance',
            lambda_init=lambda_init,
            gate=gate,
            hidden_multiplier=hidden_multiplier,
            dropout=dropout,
        )
        super().__init__(*args, attention=attention, **kwargs)


@MODELS.register_module()
class SEMobileNetV2(AttentionMobileNetV2):
    """MobileNetV2 with Squeeze-and-Excite.

    Args:
        *args: See :class:`AttentionMobileNetV2`.
        attention_layers: ``('block',)`` is the form of the paper's Table 1,
            at the output of every block; ``('expand', 'depthwise',
            'project')`` and its subsets are the layer-wise forms of Tables 2
            and 4.
        hidden_multiplier: Factor on the gate's hidden units.
        dropout: Probability of dropping a hidden unit of the gate.
        **kwargs: See :class:`AttentionMobileNetV2`.
    """

    def __init__(
        self,
        *args,
        attention_layers: Sequence[str] = ('block',),
        hidden_multiplier: float = 1,
        dropout: float = 0.0,
        **kwargs,
    ) -> None:
        attention = dict(
            type='sb_mm.SqueezeExcite',
            hidden_multiplier=hidden_multiplier,
            dropout=dropout,
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
        attention_layers: Any of ``'expand'``, ``'depthwise'``, ``'project'``.
        **kwargs: See :class:`AttentionMobileNetV2`.
    """

    def __init__(
        self,
        *args,
        num_kernels: int = 4,
        temperature: float = 30.0,
        attention_layers: Sequence[str] = ('expand', 'depthwise', 'project'),
        **kwargs,
    ) -> None:
        conv_cfg = dict(
            type='sb_mm.DynamicConv2d',
            num_kernels=num_kernels,
            temperature=temperature,
        )
        super().__init__(
            *args,
            attention_conv_cfg=conv_cfg,
            attention_layers=attention_layers,
            **kwargs,
        )
