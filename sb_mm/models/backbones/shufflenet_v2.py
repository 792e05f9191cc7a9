"""ShuffleNetV2 with attention in its blocks."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from torch import Tensor, nn

from sb_mm.arguments import check_choice, check_subset
from sb_mm.registry import MODELS

from ..layers.shuffle_block import SHUFFLE_LAYERS, ShuffleBlock
from .base_backbone import (
    TORCH_INIT,
    AttentionBackbone,
    check_has_attention,
)


@MODELS.register_module()
class AttentionShuffleNetV2(AttentionBackbone):
    """ShuffleNetV2 (arXiv:1807.11164) with any attention at any layer.

    Layers and ``state_dict`` keys of the trunk are those of mmpretrain's
    ``ShuffleNetV2``, so published weights load with
    ``init_cfg=dict(type='Pretrained', prefix='backbone.', checkpoint=...)``,
    torchvision's after ``tools/convert_weights.py``. Attention sits in the
    blocks, never in the stem or the last convolution; its gates have as many
    hidden units as the layer has outputs, depthwise or not. Without attention
    it is the static network.

    Args:
        widen_factor: 0.5, 1.0, 1.5 or 2.0.
        out_indices: Stages whose output is returned, 0-2, and 3 for the last
            convolution.
        frozen_stages: Freezes the stem (0) and the stages up to this number
            (1-3); -1 freezes nothing.
        attention: Config of the attention, such as
            ``dict(type='sb_mm.ShiftBalance')``; None for none.
        attention_conv_cfg: Config of the convolution used where the attention
            stands, such as ``dict(type='sb_mm.DynamicConv2d')``.
        attention_layers: Where in every block: any of ``'expand'``,
            ``'depthwise'``, ``'project'``, see
            :class:`~sb_mm.models.layers.shuffle_block.ShuffleBlock`.
        attention_after: Where in a layer: behind its ``'conv'``, ``'norm'``
            or ``'act'``.
        conv_cfg: Config of the other convolutions.
        norm_cfg: Config of the normalisation; ``dict(type='BN')`` if None.
        act_cfg: Config of the activation; ``dict(type='ReLU')`` if None.
        norm_eval: Keep batch normalisation on its running statistics.
        with_cp: Recompute blocks in the backward pass to save memory.
        init_cfg: Initialisation; PyTorch's default if None.

    Raises:
        ValueError: If an argument is out of its range.
    """

    # Channels of the stages and of the last convolution, by width.
    widths = {
        0.5: (48, 96, 192, 1024),
        1.0: (116, 232, 464, 1024),
        1.5: (176, 352, 704, 1024),
        2.0: (244, 488, 976, 2048),
    }
    stage_blocks = (4, 8, 4)
    num_stages = 4
    default_init_cfg = TORCH_INIT

    def __init__(
        self,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (3,),
        frozen_stages: int = -1,
        *,
        attention: dict | None = None,
        attention_conv_cfg: dict | None = None,
        attention_layers: Sequence[str] = SHUFFLE_LAYERS,
        attention_after: str = 'norm',
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(frozen_stages, norm_eval, init_cfg)
        check_choice('widen_factor', widen_factor, self.widths)
        check_subset('out_indices', out_indices, range(self.num_stages))
        check_subset('attention_layers', attention_layers, SHUFFLE_LAYERS)
        check_has_attention(attention_layers, attention, attention_conv_cfg)
        self.out_indices = tuple(out_indices)
        conv_cfgs = dict(
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg or dict(type='BN'),
            act_cfg=act_cfg or dict(type='ReLU'),
        )
        block_cfgs = dict(
            **conv_cfgs,
            attention=attention,
            attention_conv_cfg=attention_conv_cfg,
            attention_layers=tuple(attention_layers),
            attention_after=attention_after,
            with_cp=with_cp,
        )
        *widths, last = self.widths[widen_factor]
        channels = 24
        self.conv1 = ConvModule(
            3, channels, 3, stride=2, padding=1, **conv_cfgs
        )
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layers = nn.ModuleList()
        for width, blocks in zip(widths, self.stage_blocks, strict=True):
            down = ShuffleBlock(channels, width, 2, **block_cfgs)
            others = [
                ShuffleBlock(width, width, 1, **block_cfgs)
                for _ in range(blocks - 1)
            ]
            self.layers.append(nn.Sequential(down, *others))
            channels = width
        self.layers.append(ConvModule(channels, last, 1, **conv_cfgs))
        # Now too, not only in train(): a distributed wrapper looks before.
        self._freeze_stages()

    @property
    def stages(self) -> list[nn.Module]:
        """The stages, shallow to deep, without the stem."""
        return list(self.layers)

    def stem(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to a quarter of the resolution."""
        return self.maxpool(self.conv1(x))
