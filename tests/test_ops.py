"""mmcv's public functions on sb_mm.ops, against other forms of the same.

For NMS, this is a loop over the definition, mmcv's
``ops/csrc/pytorch/cpu/nms.cpp``; for the rest, torchvision's function and
mmdet's formula in float64.
"""

import sys
from importlib import import_module, invalidate_caches
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from types import ModuleType

import mmcv.ops
import numpy as np
import pytest
import torch
import torchvision
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

from sb_mm import ops

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
both_dtypes = pytest.mark.parametrize(
    'dtype', [torch.float32, torch.bfloat16], ids=str
)
both_offsets = pytest.mark.parametrize('offset', [0, 1])


@pytest.fixture(autouse=True)
def _ours(monkeypatch):
    """Let mmcv's functions call sb_mm.ops where mmcv is compiled, too."""
    for name in ('nms', 'roi_align', 'focal_loss'):
        module = sys.modules[f'mmcv.ops.{name}']
        monkeypatch.setattr(module, 'ext_module', ops)


def _assert_close(found, expected):
    """Allow one rounding of the dtype, or a few of float32."""
    rtol = max(torch.finfo(found.dtype).eps, 1e-5)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    found = found.detach().cpu().double()
    torch.testing.assert_close(found, expected.cpu(), rtol=rtol, atol=1e-6)


def _detections(count=80):
    """Return boxes and scores that are exact in every dtype.

    Some boxes are empty, some end before they begin; many scores are equal.
    """
    random = np.random.default_rng(0)
    low = random.integers(0, 3, (count, 2))
    sides = random.integers(-1, 6, (count, 2))
    boxes = np.concatenate([low, low + sides], 1)
    scores = random.integers(1, 33, count) / 32
    return torch.tensor(boxes).float(), torch.tensor(scores).float()


def _iou(a, b, offset):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inter = np.maximum(high - low + offset, 0).prod()
    areas = [(box[2:] - box[:2] + offset).prod() for box in (a, b)]
    with np.errstate(invalid='ignore'):  # 0 / 0
        return inter / (areas[0] + areas[1] - inter)


def _soft_nms(boxes, scores, method, offset, low=0.1):
    """Return the kept boxes and their scores; ``low`` ends the loop."""
    boxes, scores = boxes.numpy(), scores.numpy().copy()
    left, kept = list(range(len(boxes))), []
    while left:
        best = max(left, key=lambda i: scores[i])
        left.remove(best)
        kept.append(best)
        for i in list(left):
            overlap = np.nan_to_num(_iou(boxes[best], boxes[i], offset))
            if method == 'gaussian':
                scores[i] *= np.exp(-(overlap**2) / np.float32(0.4))
            elif method == 'hard':
                scores[i] *= overlap <= np.float32(0.3)
            elif overlap >= np.float32(0.3):
                scores[i] *= 0 if method == 'naive' else 1 - overlap
            if scores[i] < np.float32(low):
                left.remove(i)
    return kept, scores[kept]


@both_dtypes
@both_offsets
def test_nms_keeps_the_boxes_of_brute_force(offset, dtype):
    boxes, scores = _detections()
    expected, _ = _soft_nms(boxes, scores, 'hard', offset, 1e-9)
    dets, kept = mmcv.ops.nms(
        boxes.to(DEVICE, dtype), scores.to(DEVICE, dtype), 0.3, offset
    )
    assert kept.tolist() == expected
    assert 5 < len(kept) < 75
    assert dets.dtype == dtype


def test_nms_compares_the_threshold_in_float32():
    scores = torch.tensor([0.9, 0.8], device=DEVICE)
    for iou in (tenths / 10 for tenths in range(1, 10)):
        boxes = [[0, 0, 10, 10], [0, 0, 10, 10 * iou]]
        boxes = torch.tensor(boxes, device=DEVICE)
        assert len(mmcv.ops.nms(boxes, scores, iou)[1]) == 2
        assert len(mmcv.ops.nms(boxes, scores, iou - 1e-6)[1]) == 1


@both_dtypes
@both_offsets
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_lowers_the_scores_as_the_loop_does(method, offset, dtype):
    boxes, scores = _detections()
    expected, lowered = _soft_nms(boxes, scores, method, offset)
    dets, kept = mmcv.ops.soft_nms(
        boxes.to(dtype), scores.to(dtype), 0.3, 0.4, 0.1, method, offset
    )
    assert kept.tolist() == expected
    assert 5 < len(kept) < 75
    assert torch.equal(dets[:, :4], boxes[kept].to(dtype))
    _assert_close(dets[:, 4], lowered)


@pytest.mark.parametrize('function', [mmcv.ops.nms, mmcv.ops.soft_nms])
def test_no_boxes_give_no_boxes(function):
    dets, kept = function(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert (dets.shape, kept.dtype) == ((0, 5), torch.long)


@both_dtypes
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_and_its_gradient_are_torchvisions(ratio, aligned, dtype):
    torch.manual_seed(0)
    rois = [
        [0, 1.5, 2.25, 13.5, 12.5],
        [1, -7, -5, 6.25, 30],  # over three borders
        [1, 3, 4, 3.5, 4.25],  # less than a pixel
        [0, 5, 5, 5, 5],  # empty
        [0, 40, 3, 50, 9],  # outside
    ]
    rois = torch.tensor(rois, device=DEVICE, dtype=dtype)
    gradient = torch.randn(5, 3, 3, 2, device=DEVICE)
    pixels = torch.randn(2, 3, 7, 9).to(rois)
    settings = dict(spatial_scale=0.5, sampling_ratio=ratio, aligned=aligned)
    theirs, ours = pixels.double().requires_grad_(), pixels.requires_grad_()
    wanted = torchvision.ops.roi_align(
        theirs, rois.double(), (3, 2), **settings
    )
    wanted.backward(gradient.to(dtype).double())
    layer = mmcv.ops.RoIAlign((3, 2), **settings)
    found = layer(ours, rois)
    found.backward(gradient.to(dtype))
    _assert_close(found, wanted.detach())
    _assert_close(ours.grad, theirs.grad)
    assert layer(ours, rois[:0]).shape == (0, 3, 3, 2)


def test_the_gradient_of_roi_align_survives_torch_compile():
    features = torch.ones(1, 1, 6, 6, requires_grad=True)
    rois = torch.tensor([[0.0, 1, 1, 5, 5]])

    def pool(features):
        return mmcv.ops.roi_align(features, rois, 2).sum()

    torch.compile(pool, backend='eager')(features).backward()
    assert features.grad.sum() == 4  # the bins: a mean passes its gradient on


@both_dtypes
@pytest.mark.parametrize('weight', [None, [0.25, 1.5, 2, 0]])
def test_focal_loss_and_its_gradient_are_mmdets(weight, dtype):
    torch.manual_seed(0)
    logits = (torch.randn(64, 4) * 4).to(dtype)
    extreme = torch.tensor([-1e4, -80, -20, 20, 80, 1e4])
    logits[:30] = extreme.repeat_interleave(5)[:, None]
    targets = torch.arange(64) % 5  # 4 is the background
    gradient = torch.rand(64, 4).to(dtype)

    reference = logits.double().requires_grad_()
    one_hot = torch.nn.functional.one_hot(targets, 5)[:, :4]
    rows = torch.tensor([*(weight or [1] * 4), 1])[targets]
    expected = py_sigmoid_focal_loss(
        reference, one_hot, rows, 2.5, 0.3, reduction='none'
    )
    expected.backward(gradient.double())

    logits = logits.to(DEVICE).requires_grad_()
    weight = weight and torch.tensor(weight).to(logits)
    found = mmcv.ops.sigmoid_focal_loss(
        logits, targets.to(DEVICE), 2.5, 0.3, weight, 'none'
    )
    found.backward(gradient.to(DEVICE))
    _assert_close(found, expected.detach())
    _assert_close(logits.grad, reference.grad)


def test_an_operator_that_is_not_there_is_named():
    with pytest.raises(NotImplementedError, match='deform_conv_forward'):
        ops.deform_conv_forward(torch.zeros(1), stride=1)
    layer = mmcv.ops.RoIAlign(2, pool_mode='max')
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        layer(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5))
    assert not hasattr(ops, '__wrapped__')  # which inspect asks for


@pytest.fixture
def mmcv_folder(tmp_path, monkeypatch):
    """Return the empty folder of an mmcv."""
    package = ModuleType('mmcv')
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, 'mmcv', package)
    monkeypatch.delitem(sys.modules, 'mmcv._ext')
    return tmp_path


def test_only_an_mmcv_without_operators_gets_ours(mmcv_folder):
    module = import_module('mmcv._ext')
    assert module.__file__ == ops.__file__
    assert 'sb_mm' in module.get_compiling_cuda_version()
    del sys.modules['mmcv._ext']
    file = mmcv_folder / f'_ext{EXTENSION_SUFFIXES[0]}'
    file.touch()
    invalidate_caches()
    assert find_spec('mmcv._ext').origin == str(file)
