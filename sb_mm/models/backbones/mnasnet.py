"""MnasNet with attention in its inverted residual blocks."""

from mmengine.model import Sequential

from sb_mm.registry import MODELS

from .mobilenet_v2 import AttentionMobileNetV2


@MODELS.register_module()
class AttentionMnasNet(AttentionMobileNetV2):
    """MnasNet-B1 (arXiv:1807.11626) with any attention at any layer.

    Layers, widths and the slow batch normalisation (momentum 0.0003) are those
    of torchvision's ``mnasnet``; its weights load after
    ``tools/convert_weights.py``. The first stage is a depthwise separable
    convolution and has no attention. See :class:`.AttentionMobileNetV2` for
    the arguments.
    """

    arch_settings = (
        (None, 16, 1, 1, 3),
        (3, 24, 3, 2, 3),
        (3, 40, 3, 2, 5),
        (6, 80, 3, 2, 5),
        (6, 96, 2, 1, 3),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    last_channels = 1280

    def __init__(
        self,
        *args,
        # TensorFlow's 0.9997, of which torchvision's network has no other.
        norm_cfg: dict | None = dict(
            type='sb_mm.LevelBatchNorm2d', momentum=1 - 0.9997
        ),
        act_cfg: dict | None = dict(type='ReLU'),
        **kwargs,
    ) -> None:
        super().__init__(*args, norm_cfg=norm_cfg, act_cfg=act_cfg, **kwargs)

    def _make_stage(
        self, index: int, in_channels: int, out_channels: int
    ) -> Sequential:
        if index > 0:
            return super()._make_stage(index, in_channels, out_channels)
        shape = dict(padding=1, groups=in_channels)
        return Sequential(
            self._plain_conv(in_channels, in_channels, 3, **shape),
            self._plain_conv(in_channels, out_channels, 1, act_cfg=None),
        )
