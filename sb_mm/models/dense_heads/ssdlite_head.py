"""The prediction head of SSDLite."""

from collections.abc import Sequence

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmdet.models.dense_heads import SSDHead
from mmengine.structures import InstanceData
from torch import Tensor, nn

from sb_mm.arguments import check_choice
from sb_mm.registry import MODELS


@MODELS.register_module()
class SSDLiteHead(SSDHead):
    """Predict classes and boxes with depthwise separable convolutions.

    Section 5.2 of arXiv:2103.13080, after the qfgaohao/pytorch-ssd project:
    a 3x3 depthwise convolution (with bias), norm, activation and a 1x1
    convolution on every level but the last, which has a 1x1 convolution only.
    Assignment, loss (cross entropy with 3:1 hard negatives and smooth L1, both
    over the number of positives) and decoding are mmdet's ``SSDHead``'s.
    Boxes are reported clipped to the image; with ``clip_border=False`` of the
    ``bbox_coder``, suppression sees them unclipped, as in that project.

    Args:
        num_classes: Classes without the background.
        in_channels: Channels of the levels.
        use_depthwise: True, as mmdet's own SSDLite configs say.
        norm_cfg, act_cfg: Configs of normalisation and activation, or None.
        test_cfg: mmdet's, plus ``candidates_per_class``: how many of the best
            boxes of a class enter its suppression; None for all.
        **kwargs: See mmdet's ``SSDHead``.
    """

    def __init__(
        self,
        num_classes: int = 20,
        in_channels: Sequence[int] = (576, 1280, 512, 256, 256, 64),
        use_depthwise: bool = True,
        norm_cfg: dict | None = dict(type='sb_mm.LevelBatchNorm2d'),
        act_cfg: dict | None = dict(type='ReLU6'),
        **kwargs,
    ) -> None:
        check_choice('use_depthwise', use_depthwise, (True,))
        super().__init__(
            num_classes,
            in_channels,
            use_depthwise=True,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
            **kwargs,
        )
        # mmdet's prediction asks `loss_cls` whether it changes the number of
        # channels; its SSDHead has none and stops there.
        self.loss_cls = nn.CrossEntropyLoss(reduction='none')

    def _init_layers(self) -> None:
        """Build the convolutions of every level."""
        self.cls_convs = self._predictors(self.cls_out_channels)
        self.reg_convs = self._predictors(4)

    def _predictors(self, outputs: int) -> nn.ModuleList:
        """Return per level what predicts ``outputs`` numbers a prior."""
        norm, act = self.norm_cfg, self.act_cfg
        convs = nn.ModuleList()
        levels = zip(self.in_channels, self.num_base_priors, strict=True)
        for channels, priors in levels:
            # A ConvModule would warn of the bias, which the paper counts.
            depthwise = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
                build_norm_layer(norm, channels)[1] if norm else nn.Identity(),
                build_activation_layer(act) if act else nn.Identity(),
            )
            pointwise = nn.Conv2d(channels, priors * outputs, 1)
            convs.append(nn.Sequential(depthwise, pointwise))
        # The last level is a single cell.
        convs[-1] = convs[-1][1:]
        return convs

    def get_targets(self, *args, **kwargs) -> tuple:
        """Return mmdet's; an image without objects counts as 0, not 1."""
        *targets, _ = super().get_targets(*args, **kwargs)
        positives = sum((t < self.num_classes).sum() for t in targets[0])
        return (*targets, positives.clamp(min=1))

    def _bbox_post_process(
        self,
        results: InstanceData,
        cfg: dict,
        rescale: bool = False,
        *,
        img_meta: dict,
        **kwargs,
    ) -> InstanceData:
        """Keep each class's best, suppress the rest, clip what is left."""
        limit = cfg.get('candidates_per_class')
        if limit is not None:
            keep = best_of_each_class(results.scores, results.labels, limit)
            results = results[keep]
        results = super()._bbox_post_process(
            results, cfg, rescale, img_meta=img_meta, **kwargs
        )
        height, width = img_meta['ori_shape' if rescale else 'img_shape'][:2]
        high = results.bboxes.new_tensor([width, height] * 2)
        results.bboxes = results.bboxes.clamp(min=0).minimum(high)
        return results


def best_of_each_class(scores: Tensor, labels: Tensor, limit: int) -> Tensor:
    """Return the indices ``(M,)`` of at most ``limit`` scores of each label.

    They are ordered by label, and then by falling score.
    """
    order = scores.argsort(descending=True)
    order = order[labels[order].argsort(stable=True)]
    ranked = labels[order]
    first = torch.searchsorted(ranked, ranked)
    rank = torch.arange(len(order), device=order.device) - first
    return order[rank < limit]
