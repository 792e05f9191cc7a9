"""MnasNet with attention in its inverted residual blocks."""

from mmcv.cnn import ConvModule
from torch import nn

from sb_mm.registry import MODELS

from .inverted_residual_net import InvertedResidualNet


@MODELS.register_module()
class AttentionMnasNet(InvertedResidualNet):
    """MnasNet-B1 (arXiv:1807.11626) with any attention at any layer.

    Layers, widths and the slow batch normalisation (momentum 0.0003) are those
    of torchvision's ``mnasnet``; its weights load after
    ``tools/convert_weights.py``. The first stage is a depthwise separable
    convolution and has no attention.

    See :class:`~.inverted_residual_net.InvertedResidualNet` for the
    arguments; ``expand_indices`` are from 1-6.
    """

    arch_settings = (
        (1, 16, 1, 1, 3),
        (3, 24, 3, 2, 3),
        (3, 40, 3, 2, 5),
        (6, 80, 3, 2, 5),
        (6, 96, 2, 1, 3),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    # TensorFlow's 0.9997, of which torchvision's network has no other.
    default_norm_cfg = dict(type='BN', momentum=1 - 0.9997)
    default_act_cfg = dict(type='ReLU')

    @staticmethod
    def last_channels(widen_factor: float) -> int:
        """Return the channels of the last convolution, 1280 at any width."""
        return 1280

    def _make_stage(
        self, index: int, in_channels: int, out_channels: int, block_cfgs: dict
    ) -> nn.Sequential:
        if index > 0:
            return super()._make_stage(
                index, in_channels, out_channels, block_cfgs
            )
        cfgs = {k: block_cfgs[k] for k in ('conv_cfg', 'norm_cfg')}
        depthwise = ConvModule(
            in_channels,
            in_channels,
            3,
            padding=1,
            groups=in_channels,
            act_cfg=block_cfgs['act_cfg'],
            **cfgs,
        )
        project = ConvModule(
            in_channels, out_channels, 1, act_cfg=None, **cfgs
        )
        return nn.Sequential(depthwise, project)
