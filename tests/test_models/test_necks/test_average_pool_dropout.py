"""Pooling and dropout before a classifier."""

import pytest
import torch

from sb_mm.models import AveragePoolDropout


def test_a_map_becomes_its_mean():
    x = torch.randn(2, 3, 4, 5)
    (y,) = AveragePoolDropout().eval()((x,))
    torch.testing.assert_close(y, x.flatten(2).mean(2))


def test_training_drops_channels_and_keeps_the_expectation():
    torch.manual_seed(0)
    (y,) = AveragePoolDropout(0.2)((torch.ones(100, 200, 2, 2),))
    assert set(y.unique().tolist()) == {0.0, 1.25}  # 1 / (1 - 0.2)
    assert (y == 0).float().mean() == pytest.approx(0.2, abs=0.02)
