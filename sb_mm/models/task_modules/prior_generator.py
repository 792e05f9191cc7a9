"""Prior boxes of SSDLite."""

import torch
from mmdet.models.task_modules import SSDAnchorGenerator
from torch import Tensor

from sb_mm.registry import TASK_UTILS


@TASK_UTILS.register_module()
class SSDLitePriorGenerator(SSDAnchorGenerator):
    """SSD's prior boxes with widths and heights clamped to the image.

    Six a cell: squares of ``min`` and ``sqrt(min * max)`` pixels, and the
    ratios 2, 1/2, 3, 1/3 (width / height) of ``min``, centred at
    ``(i + 0.5) * stride``, as the qfgaohao/pytorch-ssd project has them. The
    clamp changes sizes only: a prior may still stick out of the image.

    Args:
        *args: See mmdet's ``SSDAnchorGenerator``.
        input_size: Width and height of the image in pixels.
        **kwargs: See mmdet's ``SSDAnchorGenerator``.
    """

    def __init__(self, *args, input_size: int = 300, **kwargs) -> None:
        # Before the base class, which generates the boxes in its constructor.
        self.max_side = input_size
        super().__init__(*args, input_size=input_size, **kwargs)

    def gen_base_anchors(self) -> list[Tensor]:
        """Return per level the ``(6, 4)`` boxes (x1, y1, x2, y2) of cell 0."""
        return [self._clamp(boxes) for boxes in super().gen_base_anchors()]

    def _clamp(self, boxes: Tensor) -> Tensor:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        halves = ((boxes[:, 2:] - boxes[:, :2]) / 2).clamp(
            max=self.max_side / 2
        )
        return torch.cat([centres - halves, centres + halves], dim=1)
