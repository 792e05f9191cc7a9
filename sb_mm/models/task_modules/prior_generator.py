"""Prior boxes of SSDLite."""

from mmdet.models.task_modules import SSDAnchorGenerator
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from torch import Tensor

from sb_mm.registry import TASK_UTILS


@TASK_UTILS.register_module()
class SSDLitePriorGenerator(SSDAnchorGenerator):
    """SSD's prior boxes with centres and sizes clamped to the image.

    Six a cell: squares of ``min`` and ``sqrt(min * max)`` pixels, and the
    ratios 2, 1/2, 3, 1/3 (width / height) of ``min``, centred at
    ``(i + 0.5) * stride``. As in the qfgaohao/pytorch-ssd project, centres,
    widths and heights beyond the image are set to its side: the last row and
    column of level 2 sit at 300 pixels instead of 304. A prior may still
    stick out of the image.

    Args:
        *args: These and others: see mmdet's ``SSDAnchorGenerator``.
        input_size: Width and height of the image in pixels.
        **kwargs: As ``args``.
    """

    def __init__(self, *args, input_size: int = 300, **kwargs) -> None:
        super().__init__(*args, input_size=input_size, **kwargs)
        self.input_size = input_size  # mmdet's forgets it

    def single_level_grid_priors(self, *args, **kwargs) -> Tensor:
        """Return the ``(H * W * 6, 4)`` boxes (x1, y1, x2, y2) of a level."""
        boxes = super().single_level_grid_priors(*args, **kwargs)
        boxes = bbox_xyxy_to_cxcywh(boxes).clamp(0, self.input_size)
        return bbox_cxcywh_to_xyxy(boxes)
