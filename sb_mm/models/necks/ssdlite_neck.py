"""The extra feature levels of SSDLite."""

from collections.abc import Sequence

from mmengine.model import BaseModule, ModuleList
from torch import Tensor

from sb_mm.errors import UserInputError
from sb_mm.registry import MODELS

from ..backbones.blocks import InvertedResidual


@MODELS.register_module()
class SSDLiteNeck(BaseModule):
    """Append inverted residuals of stride 2, without attention.

    Section 5.2 of arXiv:2103.13080, after the SSDLite of the
    qfgaohao/pytorch-ssd project: 1280 -> 512 -> 256 -> 256 -> 64 channels.

    Args:
        in_channels: Channels of the backbone's outputs, passed through.
        out_channels: Channels of the extra levels.
        hidden_channels: Channels of their depthwise convolutions.
        norm_cfg, act_cfg: See :class:`~.backbones.blocks.AttentionModule`.
        init_cfg: Initialisation; Xavier if None.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (576, 1280),
        out_channels: Sequence[int] = (512, 256, 256, 64),
        hidden_channels: Sequence[int] = (256, 128, 128, 64),
        norm_cfg: dict | None = dict(type='sb_mm.LevelBatchNorm2d'),
        act_cfg: dict | None = dict(type='ReLU6'),
        init_cfg: dict | list | None = None,
    ) -> None:
        xavier = dict(type='Xavier', distribution='uniform', layer='Conv2d')
        super().__init__(init_cfg or xavier)
        self.in_channels = tuple(in_channels)
        self.extra_layers = ModuleList()
        channels = in_channels[-1]
        cfgs = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
        for out, hidden in zip(out_channels, hidden_channels, strict=True):
            block = InvertedResidual(channels, out, 2, hidden, **cfgs)
            self.extra_layers.append(block)
            channels = out

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the inputs, then the extra levels, each ``(N, C, H, W)``.

        Raises:
            UserInputError: If the inputs' channels are not ``in_channels``.
        """
        channels = tuple(x.size(1) for x in inputs)
        if channels != self.in_channels:
            raise UserInputError(
                f'SSDLiteNeck has in_channels={self.in_channels}, but the '
                f'backbone gave {channels} channels: set in_channels of the '
                'neck and of the head to these.'
            )
        outs = list(inputs)
        for layer in self.extra_layers:
            outs.append(layer(outs[-1]))
        return tuple(outs)
