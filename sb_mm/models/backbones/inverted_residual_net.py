"""What the networks of inverted residual blocks have in common."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from torch import Tensor, nn

from sb_mm.arguments import check_number, check_subset, make_divisible

from ..layers.inverted_residual import ATTENTION_LAYERS, InvertedResidual
from .base_backbone import AttentionBackbone, check_has_attention


class InvertedResidualNet(AttentionBackbone):
    """A stem, seven stages of inverted residual blocks, a last convolution.

    A subclass gives the table of its stages and the class-level settings
    below. Attention sits in the inverted residual blocks, never in the stem
    or the last convolution. Without attention it is the static network.

    Args:
        widen_factor: Multiplies the channels of every stage; rounded to
            multiples of 8.
        out_indices: Stages whose output is returned, 0-6 for ``layer1`` to
            ``layer7`` and 7 for the last convolution.
        expand_indices: Stages of whose first block the expand convolution's
            activated output is returned as well. SSDLite taps stage 5 so.
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
        norm_cfg: Config of the normalisation; ``default_norm_cfg`` if None.
        act_cfg: Config of the activation; ``default_act_cfg`` if None.
        norm_eval: Keep batch normalisation on its running statistics.
        with_cp: Recompute blocks in the backward pass to save memory.
        init_cfg: Initialisation; ``default_init_cfg`` if None.

    Raises:
        ValueError: If an argument is out of its range.
    """

    # Per stage: expansion, channels at width 1, blocks, stride of the first
    # block, kernel size of the depthwise convolutions.
    arch_settings: tuple[tuple[int, int, int, int, int], ...]
    num_stages = 8
    stem_stride = 2
    # Whether a block whose expansion is 1 has an expand convolution too.
    always_expand = False
    # See InvertedResidual.
    shortcut = False
    default_norm_cfg = dict(type='BN')
    default_act_cfg = dict(type='ReLU6')

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
        if out_indices or not expand_indices:
            check_subset('out_indices', out_indices, range(self.num_stages))
        if expand_indices:
            check_subset('expand_indices', expand_indices, self._expanded())
        # The block's output has no convolution of its own.
        places = ATTENTION_LAYERS[: 3 if attention_conv_cfg else 4]
        check_subset('attention_layers', attention_layers, places)
        check_has_attention(attention_layers, attention, attention_conv_cfg)
        self.out_indices = tuple(out_indices)
        self.expand_indices = tuple(expand_indices)
        conv_cfgs = dict(
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg or dict(self.default_norm_cfg),
            act_cfg=act_cfg or dict(self.default_act_cfg),
        )
        block_cfgs = dict(
            **conv_cfgs,
            attention=attention,
            attention_conv_cfg=attention_conv_cfg,
            attention_layers=tuple(attention_layers),
            attention_after=attention_after,
            with_cp=with_cp,
        )
        channels = self.stem_channels(widen_factor)
        self.conv1 = ConvModule(
            3, channels, 3, stride=self.stem_stride, padding=1, **conv_cfgs
        )
        for i, (_, width, *_) in enumerate(self.arch_settings):
            out_channels = make_divisible(width * widen_factor)
            stage = self._make_stage(i, channels, out_channels, block_cfgs)
            self._add_stage(f'layer{i + 1}', stage)
            channels = out_channels
        last = self.last_channels(widen_factor)
        self._add_stage('conv2', ConvModule(channels, last, 1, **conv_cfgs))
        # Now too, not only in train(): a distributed wrapper looks before.
        self._freeze_stages()

    @staticmethod
    def stem_channels(widen_factor: float) -> int:
        """Return the channels of the stem."""
        return make_divisible(32 * widen_factor)

    @staticmethod
    def last_channels(widen_factor: float) -> int:
        """Return the channels of the last convolution."""
        return int(1280 * max(1.0, widen_factor))

    def _expanded(self) -> list[int]:
        """Return the stages whose first block has an expand convolution."""
        return [
            i
            for i, (expansion, *_) in enumerate(self.arch_settings)
            if expansion > 1 or self.always_expand
        ]

    def _make_stage(
        self, index: int, in_channels: int, out_channels: int, block_cfgs: dict
    ) -> nn.Sequential:
        expansion, _, blocks, stride, kernel = self.arch_settings[index]
        stage = nn.Sequential()
        for _ in range(blocks):
            block = InvertedResidual(
                in_channels,
                out_channels,
                stride,
                in_channels * expansion,
                kernel_size=kernel,
                expand=index in self._expanded(),
                shortcut=self.shortcut,
                **block_cfgs,
            )
            stage.append(block)
            in_channels, stride = out_channels, 1
        return stage

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the chosen features of images ``(N, 3, H, W)``.

        Returns:
            Shallow to deep, each ``(N, C, H / stride, W / stride)``; a stage's
            expand output comes right before that stage's output.
        """
        x = self.stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            if i in self.expand_indices:
                expanded, x = stage[0].forward_with_expansion(x)
                outs.append(expanded)
                stage = stage[1:]
            x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)
