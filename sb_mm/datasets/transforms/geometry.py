"""The geometry of SSD's augmentation: expand, crop, resize and flip as one."""

from dataclasses import dataclass

import numpy as np
from mmdet.datasets.transforms import Expand, MinIoURandomCrop

# Stock's MinIoURandomCrop draws as many patches before it draws a new mode.
_TRIES = 50
# Corners are (left, top, right, bottom) in pixels of the original image, from
# its top left corner.


@dataclass(frozen=True)
class Geometry:
    """Which part of the plane around an image becomes the output."""

    patch: np.ndarray  # its corners, whole pixels, also beyond the image
    scale: tuple[int, int]  # size of the output in pixels, (width, height)
    flip: bool  # whether the output is mirrored from left to right
    kept: np.ndarray  # indices of the boxes whose centres are in the patch

    @property
    def scale_factor(self) -> tuple[float, float]:
        """Output pixels a pixel of the image, (horizontal, vertical)."""
        width, height = self.patch[2:] - self.patch[:2]
        return self.scale[0] / width, self.scale[1] / height

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Map corners ``(N, 4)`` to the output, and cut them there."""
        width, height = self.scale
        out = boxes - np.tile(self.patch[:2], 2)
        out = out * np.tile(self.scale_factor, 2)
        out = out.clip(0, (width, height, width, height))
        if self.flip:
            out[:, [0, 2]] = width - out[:, [2, 0]]
        return out.astype(np.float32)

    def visible(self, width: int, height: int) -> tuple[slice, slice]:
        """Return the output's rows and columns that show the image."""
        # Bilinear interpolation mixes it in half a pixel outside of it.
        image = np.array([(-0.499, -0.499, width + 0.499, height + 0.499)])
        left, top, right, bottom = np.rint(self.boxes(image)[0]).astype(int)
        return slice(top, bottom), slice(left, right)

    def matrix(self) -> np.ndarray:
        """Return the affine map ``(2, 3)`` from output to image pixels.

        Both have whole numbers at the centres of pixels, as OpenCV has.
        """
        step = 1 / np.array(self.scale_factor)
        start = 0.5 * step - 0.5 + self.patch[:2]
        if self.flip:
            start[0] += (self.scale[0] - 1) * step[0]
            step[0] = -step[0]
        return np.column_stack((np.diag(step), start))


def draw_canvas(size: np.ndarray, expand: Expand | None) -> np.ndarray:
    """Draw the corners of a canvas around an image, if it is to expand."""
    if not expand or np.random.uniform(0, 1) > expand.prob:
        return np.array((0, 0, *size))
    ratio = np.random.uniform(*expand.ratio_range)
    corner = -np.random.uniform(0, size * ratio - size).astype(int)
    return np.concatenate((corner, corner + (size * ratio).astype(int)))


def draw_patch(
    canvas: np.ndarray, boxes: np.ndarray, crop: MinIoURandomCrop | None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a patch as stock does, but many at once, if it is to crop.

    Returns:
        Corners ``(4,)`` in the canvas, and the indices of the boxes ``(N, 4)``
        that stay.
    """
    while crop and (min_iou := np.random.choice((1, *crop.min_ious, 0))) != 1:
        patches = _candidates(canvas[2:] - canvas[:2], crop.min_crop_size)
        patches += np.tile(canvas[:2], 2)
        fits, inside = _conditions(patches, boxes, min_iou)
        if fits.any():
            first = fits.argmax()
            return patches[first], np.flatnonzero(inside[first])
    return canvas, np.arange(len(boxes))


def _candidates(size: np.ndarray, min_size: float) -> np.ndarray:
    """Draw the patches of one mode that have a permitted shape."""
    sizes = np.random.uniform(min_size * size, size, (_TRIES, 2))
    # The second end is 1 in mmdet's code too, which leaves it to NumPy.
    corners = np.random.uniform(size - sizes, 1.0)
    patches = np.hstack((corners, corners + sizes)).astype(int)
    aspect = sizes[:, 1] / sizes[:, 0]
    sides = patches[:, 2:] - patches[:, :2]
    return patches[(aspect >= 0.5) & (aspect <= 2) & sides.all(1)]


def _conditions(
    patches: np.ndarray, boxes: np.ndarray, min_iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return which patches fit ``(P,)``, and the boxes in them ``(P, N)``."""
    if not len(boxes):
        return np.ones(len(patches), bool), np.ones((len(patches), 0), bool)
    low, high = patches[:, None, :2], patches[:, None, 2:]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres > low) & (centres < high)).all(2)
    overlaps = _ious(patches[:, None].astype(np.float64), boxes)
    return (overlaps.min(1) >= min_iou) & inside.any(1), inside


def _ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of corners that broadcast; torchvision's is slower."""
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., 2:], b[..., 2:])
    common = (high - low).clip(0).prod(-1)
    areas = [(c[..., 2:] - c[..., :2]).prod(-1) for c in (a, b)]
    return common / (sum(areas) - common).clip(1e-6)
