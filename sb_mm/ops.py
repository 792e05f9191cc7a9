"""mmcv's operators on torchvision's, for an mmcv without compiled ones.

``import mmcv._ext`` gives this module where mmcv has no C++ extension of that
name (see :class:`sb_mm.OperatorFinder`). Signatures are those of mmcv's
``csrc/pytorch/pybind.cpp``; operators write into the tensors that they are
given, as the compiled ones do. Low-precision input is computed in float32.

They write by ``output[...] = values``: ``output.copy_(values)`` returns
``output`` a second time, and ``torch.compile`` (2.11) then sends the gradient
of mmcv's autograd functions to that one, so that it is silently zero.
"""

from collections.abc import Callable
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad
from torchvision.ops import box_iou

_LOW_PRECISION = (torch.float16, torch.bfloat16)


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Return a function that says why the operator ``name`` is not here."""
    if name.startswith('__'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return partial(_refuse, name)


def _refuse(operator: str, *args, **kwargs) -> NoReturn:
    raise NotImplementedError(
        f"mmcv's operator {operator} is not among those that sb_mm brings: "
        'build mmcv with its operators to use it (docs/install.md).'
    )


def get_compiler_version() -> str:
    """Return what ``collect_env`` shows as mmcv's compiler."""
    return 'none (operators of sb_mm)'


def get_compiling_cuda_version() -> str:
    """Return what ``collect_env`` shows as mmcv's CUDA compiler."""
    return 'not available'


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int
) -> Tensor:
    """Return the indices ``(K,)`` of the boxes that NMS keeps, best first.

    A box is dropped if its IoU with a better one that is kept exceeds the
    threshold; of equal scores, the first comes first.

    Args:
        boxes: ``(N, 4)`` as x1, y1, x2, y2.
        scores: ``(N,)``.
        iou_threshold: Compared in float32, as mmcv's kernels do.
        offset: 0, or 1 where x2 and y2 are the last pixels inside.
    """
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return torch.ops.torchvision.nms(
        _to_corners(boxes, offset), scores.float(), threshold
    )


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of overlapping boxes (Soft-NMS, arXiv:1704.04503).

    Of equal scores, the first comes first. Two empty boxes do not overlap;
    the compiled operator's gaussian makes their scores NaN.

    Args:
        boxes: ``(N, 4)``.
        scores: ``(N,)``.
        dets: ``(N, 5)``; its first K rows get the boxes that stay and their
            new scores, best first.
        iou_threshold: From this IoU on, methods 0 and 1 act.
        sigma: Width of method 2.
        min_score: Boxes whose score falls below are dropped.
        method: 0 naive, 1 linear, 2 gaussian.
        offset: As in :func:`nms`.

    Returns:
        Indices ``(K,)`` of the boxes that stay.
    """
    corners, scores = _to_corners(boxes, offset), scores.float().clone()
    left, kept = torch.arange(len(boxes)), []
    while len(left):
        best = int(left[scores[left].argmax()])
        kept.append(best)
        left = left[left != best]
        overlap = box_iou(corners[[best]], corners[left])[0].nan_to_num()
        scores[left] *= _decay(overlap, iou_threshold, sigma, method)
        left = left[scores[left] >= min_score]
    indices = torch.tensor(kept, dtype=torch.long)
    dets[: len(kept), :4] = boxes[indices]
    dets[: len(kept), 4] = scores[indices]
    return indices


def _decay(
    overlap: Tensor, iou_threshold: float, sigma: float, method: int
) -> Tensor:
    """Return the factors ``(N,)`` of the scores for IoUs ``(N,)``."""
    if method == 2:
        return torch.exp(-(overlap**2) / sigma)
    lowered = 1 - overlap if method == 1 else torch.zeros_like(overlap)
    return torch.where(overlap >= iou_threshold, lowered, 1.0)


def _to_corners(boxes: Tensor, offset: int) -> Tensor:
    """Return float32 boxes ``(N, 4)`` whose sides are x2 - x1 + offset."""
    boxes = boxes.float()
    return boxes + boxes.new_tensor([0, 0, offset, offset])


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group detections by the one that suppresses them.

    Args:
        dets: ``(N, 5)``, boxes and scores.
        iou_threshold: From this IoU on a box is suppressed.

    Returns:
        Indices of each group, by falling score.
    """
    boxes = dets[:, :4].float()
    left = dets[:, 4].float().argsort(descending=True, stable=True)
    groups = []
    while len(left):
        first, rest = left[0], left[1:]
        hit = box_iou(boxes[left[:1]], boxes[rest])[0] >= iou_threshold
        groups.append([int(first), *rest[hit].tolist()])
        left = rest[~hit]
    return groups


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average features bilinearly over the bins of each region.

    Args:
        input: Features ``(N, C, H, W)``.
        rois: ``(K, 5)``: image, x1, y1, x2, y2 in pixels of the image.
        output: ``(K, C, aligned_height, aligned_width)``, written.
        argmax_y: Not used by the average.
        argmax_x: Not used by the average.
        aligned_height: Bins from top to bottom.
        aligned_width: Bins from left to right.
        spatial_scale: Pixels of the features for one of the image.
        sampling_ratio: Points to a side of a bin; 0 takes its size.
        pool_mode: 1, the average.
        aligned: Shift by half a pixel.

    Raises:
        NotImplementedError: For the maximum, ``pool_mode`` 0.
    """
    if pool_mode != 1:
        _refuse("roi_align_forward with pool_mode='max'")
    features = _computable(input)
    values = torch.ops.torchvision.roi_align(
        features,
        rois.to(features),
        spatial_scale,
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output[...] = values


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient ``(N, C, H, W)`` of the features to ``grad_input``.

    See :func:`roi_align_forward` for the arguments.
    """
    gradient = _computable(grad_output)
    values = torch.ops.torchvision._roi_align_backward(
        gradient,
        rois.to(gradient),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input[...] = values


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the focal loss (arXiv:1708.02002, Eq. 5) to ``output``.

    Args:
        input: Logits ``(N, C)``.
        target: Classes ``(N,)``; C is the background.
        weight: Factors ``(C,)`` of the rows by their class, or empty; that
            of the background is 1.
        output: ``(N, C)``, written.
        gamma: Focusing exponent.
        alpha: Weight of the true class; 1 - alpha that of the others.
    """
    logits = _computable(input)
    output[...] = _focal_loss(logits, target, weight, gamma, alpha)


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the derivative of the loss by its logits to ``grad_input``.

    See :func:`sigmoid_focal_loss_forward` for the arguments.
    """
    with torch.enable_grad():
        logits = _computable(input).detach().requires_grad_()
        loss = _focal_loss(logits, target, weight, gamma, alpha).sum()
    (slope,) = torch.autograd.grad(loss, logits)
    grad_input[...] = slope


def _focal_loss(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    """Return the loss ``(N, C)``, finite for every logit."""
    classes = torch.arange(logits.size(1), device=logits.device)
    positive = target[:, None] == classes
    signed = torch.where(positive, logits, -logits)
    log_p = logsigmoid(signed)  # of the right answer
    modulation = torch.exp(gamma * logsigmoid(-signed))  # (1 - p)^gamma
    loss = -torch.where(positive, alpha, 1 - alpha) * modulation * log_p
    if not weight.numel():
        return loss
    return loss * pad(weight, (0, 1), value=1.0)[target][:, None]


def _computable(tensor: Tensor) -> Tensor:
    """Return what the kernels can compute with: float32 or float64."""
    return tensor.float() if tensor.dtype in _LOW_PRECISION else tensor
