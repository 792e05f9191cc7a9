"""mmcv's operators on torchvision's, for an mmcv without compiled ones.

``import mmcv._ext`` gives this module where mmcv has no C++ extension of that
name (see :class:`sb_mm.OperatorFinder`). The callers in ``mmcv.ops`` document
the arguments. Low-precision input is computed in float32.

Operators write into the tensors that they are given, by ``output[...] =
values``: ``output.copy_(values)`` returns ``output`` a second time, and
``torch.compile`` (2.11) then sends the gradient of mmcv's autograd functions
to that one, so that it is silently zero.
"""

from collections.abc import Callable
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad
from torchvision.ops import box_iou


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Return a function that says that the operator ``name`` is not here."""
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


get_compiling_cuda_version = get_compiler_version


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int
) -> Tensor:
    """Return the indices ``(K,)`` of the boxes that NMS keeps, best first.

    Of equal scores, the first comes first. ``offset`` is 1 where x2 and y2 are
    the last pixels inside.
    """
    # Compared in float32, as by mmcv's kernels.
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

    Of equal scores, the first comes first. Two empty boxes do not overlap.
    ``method`` is 0 for naive, 1 for linear, 2 for gaussian.

    Returns:
        Indices ``(K,)`` of the boxes that stay, best first; the first K rows
        of ``dets`` get these boxes and their new scores.
    """
    corners, scores = _to_corners(boxes, offset), scores.float().clone()
    left, kept = torch.arange(len(boxes)), []
    while len(left):
        best = int(left[scores[left].argmax()])
        kept.append(best)
        left = left[left != best]
        overlap = box_iou(corners[[best]], corners[left])[0].nan_to_num()
        if method == 2:
            scores[left] *= torch.exp(-(overlap**2) / sigma)
        else:
            lowered = method * (1 - overlap)
            scores[left] *= lowered.where(overlap >= iou_threshold, 1.0)
        left = left[scores[left] >= min_score]
    indices = torch.tensor(kept, dtype=torch.long)
    dets[: len(kept)] = torch.cat([boxes, scores[:, None]], 1)[indices]
    return indices


def _to_corners(boxes: Tensor, offset: int) -> Tensor:
    """Return float32 boxes ``(N, 4)`` whose sides are x2 - x1 + offset."""
    boxes = boxes.float()
    return boxes + boxes.new_tensor([0, 0, offset, offset])


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    pool_mode: int,
    **bins,
) -> None:
    """Average features bilinearly over the bins of each region."""
    if pool_mode != 1:
        _refuse("roi_align_forward with pool_mode='max'")
    features = _computable(input)
    output[...] = torch.ops.torchvision.roi_align(
        features, rois.to(features), **_bins(**bins)
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    pool_mode: int,
    **bins,
) -> None:
    """Write the gradient of the features to ``grad_input``."""
    gradient = _computable(grad_output)
    sizes = ('batch_size', 'channels', 'height', 'width')
    grad_input[...] = torch.ops.torchvision._roi_align_backward(
        gradient,
        rois.to(gradient),
        **dict(zip(sizes, grad_input.shape, strict=True)),
        **_bins(**bins),
    )


def _bins(aligned_height: int, aligned_width: int, **others) -> dict:
    return dict(
        pooled_height=aligned_height, pooled_width=aligned_width, **others
    )


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, **factors
) -> None:
    """Write the focal loss (arXiv:1708.02002, Eq. 5) to ``output``.

    Of logits ``(N, C)`` and classes ``(N,)``, C for the background; ``weight``
    has a factor for each class, 1 for the background, or is empty.
    """
    logits = _computable(input)
    output[...] = _focal_loss(logits, target, weight, **factors)


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    **factors,
) -> None:
    """Write the derivative of the loss by its logits to ``grad_input``."""
    with torch.enable_grad():
        logits = _computable(input).detach().requires_grad_()
        loss = _focal_loss(logits, target, weight, **factors).sum()
    (grad_input[...],) = torch.autograd.grad(loss, logits)


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
    # The kernels compute with float32 or float64.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
