"""MobileNetV2 with attention in its inverted residual blocks."""

from collections.abc import Sequence

from sb_mm.registry import MODELS

from .base_backbone import TORCH_INIT
from .inverted_residual_net import InvertedResidualNet


@MODELS.register_module()
class AttentionMobileNetV2(InvertedResidualNet):
    """MobileNetV2 (arXiv:1801.04381) with any attention at any layer.

    Widths, strides and ``state_dict`` keys of the trunk are those of
    mmpretrain's ``MobileNetV2``, so published weights load with
    ``init_cfg=dict(type='Pretrained', prefix='backbone.', checkpoint=...)``.

    See :class:`~.inverted_residual_net.InvertedResidualNet` for the
    arguments; ``expand_indices`` are from 1-6, the first block has no expand
    convolution.
    """

    arch_settings = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 32, 3, 2, 3),
        (6, 64, 4, 2, 3),
        (6, 96, 3, 1, 3),
        (6, 160, 3, 2, 3),
        (6, 320, 1, 1, 3),
    )


@MODELS.register_module()
class AttentionMobileNetV2CIFAR(InvertedResidualNet):
    """The MobileNetV2 of the paper's CIFAR-10 tables, for 32x32 pixels.

    That of the kuangliu/pytorch-cifar recipe: a stem of stride 1 with 16
    channels at every width, stage 2 without stride, an expand convolution in
    the first block too, ReLU, and a 1x1 convolution with BN as the shortcut
    where a block of stride 1 changes the channels. The output is 4x4.

    See :class:`~.inverted_residual_net.InvertedResidualNet` for the
    arguments.
    """

    arch_settings = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 1, 3),
        (6, 32, 3, 2, 3),
        (6, 64, 4, 2, 3),
        (6, 96, 3, 1, 3),
        (6, 160, 3, 2, 3),
        (6, 320, 1, 1, 3),
    )
    stem_stride = 1
    always_expand = True
    shortcut = True
    default_act_cfg = dict(type='ReLU')
    default_init_cfg = TORCH_INIT

    @staticmethod
    def stem_channels(widen_factor: float) -> int:
        """Return the channels of the stem, the same at every width."""
        return 16


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
