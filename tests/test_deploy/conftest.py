"""Small networks, and the files that are made of them once."""

import copy

import pytest
import torch
from tiny_detector import SIDE, cut_networks, detector


@pytest.fixture
def small(monkeypatch):
    """Exporting a network takes time a layer."""
    cut_networks(monkeypatch)


@pytest.fixture(scope='session')
def detector_file():
    """Return a detector's file of a kind: raw, nms or nms cpu."""
    from sb_mm.deploy import fold
    from sb_mm.deploy.nms import SuppressingDetector
    from sb_mm.deploy.onnx import exportable, to_onnx
    from sb_mm.deploy.this_cpu import for_this_cpu

    files = {}

    def get(kind):
        if kind not in files:
            module = exportable(fold(detector()), (SIDE, SIDE))
            module = SuppressingDetector(module) if 'nms' in kind else module
            one = 'cpu' in kind
            images = torch.rand(1 if one else 2, 3, SIDE, SIDE)
            file = to_onnx(module, images, dynamic=not one)
            files[kind] = for_this_cpu(file) if one else file
        return copy.deepcopy(files[kind])

    return get
