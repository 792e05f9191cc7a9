"""ShuffleNetV2 with attention in its blocks."""

from collections.abc import Sequence

from mmengine.model import ModuleList, Sequential
from torch import Tensor, nn

from sb_mm.arguments import check_choice
from sb_mm.registry import MODELS

from .base import TORCH_INIT, AttentionBackbone
from .blocks import ShuffleBlock


@MODELS.register_module()
class AttentionShuffleNetV2(AttentionBackbone):
    """ShuffleNetV2 (arXiv:1807.11164) with any attention at any layer.

    Layers and ``state_dict`` keys of the trunk are those of mmpretrain's
    ``ShuffleNetV2``, so published weights load with
    ``init_cfg=dict(type='Pretrained', prefix='backbone.', checkpoint=...)``,
    torchvision's after ``tools/convert_weights.py``. The gates have as many
    hidden units as the layer has outputs, depthwise or not.

    Args:
        widen_factor: 0.5, 1.0, 1.5 or 2.0.
        out_indices: 0-2, and 3 for the last convolution.
        frozen_stages: -1 to 3.
        **kwargs: These and others: see :class:`~.base.AttentionBackbone`.
    """

    # Channels of the stages and of the last convolution, by width.
    widths = {
        0.5: (48, 96, 192, 1024),
        1.0: (116, 232, 464, 1024),
        1.5: (176, 352, 704, 1024),
        2.0: (244, 488, 976, 2048),
    }
    stage_blocks = (4, 8, 4)
    default_init_cfg = TORCH_INIT

    def __init__(
        self,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (3,),
        frozen_stages: int = -1,
        *,
        act_cfg: dict | None = dict(type='ReLU'),
        **kwargs,
    ) -> None:
        check_choice('widen_factor', widen_factor, self.widths)
        super().__init__(out_indices, frozen_stages, act_cfg=act_cfg, **kwargs)
        *widths, last = self.widths[widen_factor]
        channels = 24
        self.conv1 = self._plain_conv(3, channels, 3, stride=2, padding=1)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layers = ModuleList()
        for width, blocks in zip(widths, self.stage_blocks, strict=True):
            down = ShuffleBlock(channels, width, 2, **self.layer_cfgs)
            others = [
                ShuffleBlock(width, width, 1, **self.layer_cfgs)
                for _ in range(blocks - 1)
            ]
            self.layers.append(Sequential(down, *others))
            channels = width
        self.layers.append(self._plain_conv(channels, last, 1))
        self._finish()

    @property
    def stages(self) -> list[nn.Module]:
        """The stages, shallow to deep, without the stem."""
        return list(self.layers)

    def stem(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to a quarter of the resolution."""
        return self.maxpool(self.conv1(x))
