"""The 3,000 priors of SSDLite."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

TASK_UTILS = pytest.importorskip('mmdet.registry').TASK_UTILS
MODEL = Path(__file__).parents[3] / (
    'configs/_base_/models/ssdlite_mobilenetv2.py'
)
SIDES = (19, 10, 5, 3, 2, 1)
STRIDES = (16, 32, 64, 100, 150, 300)
MIN = (60, 105, 150, 195, 240, 285)
MAX = (105, 150, 195, 240, 285, 330)


def listed_priors():
    """Write ARCHITECTURE's list: centre and size in pixels, 6 a cell."""
    boxes = []
    for side, stride, low, high in zip(SIDES, STRIDES, MIN, MAX, strict=True):
        sizes = [(low, low), ((low * high) ** 0.5,) * 2]
        for ratio in (2, 3):
            root = ratio**0.5
            sizes += [(low * root, low / root), (low / root, low * root)]
        for row in range(side):
            for column in range(side):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                for w, h in sizes:
                    boxes.append([min(v, 300) for v in (x, y, w, h)])
    return np.array(boxes)


def test_there_are_3000_priors_and_they_are_the_listed_ones():
    """In the order in which the head's 1x1 convolutions predict them."""
    cfg = Config.fromfile(MODEL).model.bbox_head.anchor_generator
    sizes = [(side, side) for side in SIDES]
    levels = TASK_UTILS.build(cfg).grid_priors(sizes, device='cpu')
    assert [len(level) for level in levels] == [2166, 600, 150, 54, 24, 6]
    boxes = torch.cat(levels).double().numpy()
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    ours = np.hstack([centres, boxes[:, 2:] - boxes[:, :2]])
    # The last row and column of level 2, at 300 instead of 304 pixels.
    assert (ours[2166:2766, :2] == 300).any(1).sum() == 114
    # A prior may stick out of the image.
    assert boxes.min() < 0
    assert boxes.max() > 300
    np.testing.assert_allclose(ours, listed_priors(), rtol=0, atol=2e-3)
