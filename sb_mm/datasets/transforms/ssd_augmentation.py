"""SSD's training augmentation, with one resampling of the image."""

from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import (
    Expand,
    MinIoURandomCrop,
    PhotoMetricDistortion,
)
from mmdet.structures.bbox import HorizontalBoxes, autocast_box_type

from sb_mm.arguments import check_number
from sb_mm.errors import UserInputError, explain
from sb_mm.registry import TRANSFORMS

from .geometry import Geometry, draw_canvas, draw_patch


@TRANSFORMS.register_module()
class SSDAugmentation(BaseTransform):
    """Distort colours, expand, crop, resize and flip in one pass.

    Stands between ``LoadAnnotations`` and ``PackDetInputs``, for mmdet's
    ``PhotoMetricDistortion``, ``Expand``, ``MinIoURandomCrop``, ``Resize``
    (``keep_ratio=False``) and ``RandomFlip``, with their parameters and the
    same distribution (the augmentation of SSD, arXiv:1512.02325). Only
    the output's pixels are computed: they differ from stock's by rounding.

    Args:
        scale: Size of the output in pixels, (width, height).
        photometric: Arguments of ``PhotoMetricDistortion``; None for none.
        expand: Arguments of ``Expand``; None for none.
        crop: Arguments of ``MinIoURandomCrop``; None for none.
        flip_prob: Probability of mirroring from left to right.
        distort_fill: Whether the colour of the space around the image is
            distorted with it, as in mmdet's SSD configs, which distort last.

    Raises:
        UserInputError: If an argument is out of its range, or there are
            masks or maps, which it does not handle.
    """

    def __init__(
        self,
        scale: tuple[int, int] = (300, 300),
        photometric: dict | None = None,
        expand: dict | None = None,
        crop: dict | None = None,
        flip_prob: float = 0.5,
        distort_fill: bool = False,
    ) -> None:
        if not isinstance(scale, (tuple, list)) or len(scale) != 2:
            raise UserInputError(
                f'scale must be (width, height) in pixels, but got {scale!r}.'
            )
        for side in scale:
            check_number('scale', side, 1, integer=True)
        check_number('flip_prob', flip_prob, 0, 1)
        self.scale = tuple(scale)
        self.flip_prob = flip_prob
        self.distort_fill = distort_fill
        self.photometric = _stock(PhotoMetricDistortion, photometric)
        self.expand = _stock(Expand, expand)
        self.crop = _stock(MinIoURandomCrop, crop)

    @autocast_box_type()
    def transform(self, results: dict) -> dict:
        """Augment ``img`` ``(H, W, 3)``, float32 as stock's, and boxes."""
        for key in ('gt_masks', 'gt_seg_map'):
            if results.get(key) is not None:
                raise UserInputError(
                    f'SSDAugmentation handles boxes only, but there is {key}: '
                    "use mmdet's transforms, or load without them."
                )
        img = results['img']
        boxes = results['gt_bboxes'].tensor.numpy()
        geometry = self.draw(*img.shape[1::-1], boxes)
        kept = geometry.boxes(boxes[geometry.kept])
        results['gt_bboxes'] = HorizontalBoxes(kept)
        for key in ('gt_bboxes_labels', 'gt_ignore_flags'):
            if key in results:
                results[key] = results[key][geometry.kept]
        results['img'] = self.render(img, geometry)
        results['img_shape'] = results['img'].shape[:2]
        results['scale_factor'] = geometry.scale_factor
        results['flip'] = geometry.flip
        results['flip_direction'] = 'horizontal' if geometry.flip else None
        return results

    def draw(self, width: int, height: int, boxes: np.ndarray) -> Geometry:
        """Draw what happens to an image with boxes ``(N, 4)``, in pixels."""
        canvas = draw_canvas(np.array((width, height)), self.expand)
        patch, kept = draw_patch(canvas, boxes, self.crop)
        flip = bool(np.random.uniform(0, 1) < self.flip_prob)
        return Geometry(patch, self.scale, flip, kept)

    def render(self, img: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Return the output ``(height, width, 3)``, float32."""
        size = img.shape[1::-1]
        left, top, right, bottom = geometry.patch
        if min(left, top) >= 0 and right <= size[0] and bottom <= size[1]:
            out = cv2.resize(img[top:bottom, left:right], self.scale)
            return self._distort(cv2.flip(out, 1) if geometry.flip else out)
        out = np.empty((*self.scale[::-1], img.shape[2]), np.float32)
        out[:] = self.expand.mean
        rows, columns = geometry.visible(*size)
        if out[rows, columns].size:
            seen = self._warp(img, geometry, rows, columns)
            out[rows, columns] = (
                seen if self.distort_fill else self._distort(seen)
            )
        return self._distort(out) if self.distort_fill else out

    def _warp(
        self, img: np.ndarray, geometry: Geometry, rows: slice, columns: slice
    ) -> np.ndarray:
        """Return the visible part of the output, at its borders mixed."""
        matrix = geometry.matrix()
        matrix[:, 2] += matrix[:, :2] @ (columns.start, rows.start)
        return cv2.warpAffine(
            img,
            matrix,
            (columns.stop - columns.start, rows.stop - rows.start),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=tuple(map(float, self.expand.mean)),
        )

    def _distort(self, img: np.ndarray) -> np.ndarray:
        if self.photometric is None:
            return img.astype(np.float32)
        return self.photometric.transform(dict(img=img))['img']


def _stock(cls: type, arguments: dict | None) -> Any:
    fault = f"{arguments!r} are no arguments of mmdet's {cls.__name__}"
    with explain(fault, 'correct them'):
        return None if arguments is None else cls(**arguments)
