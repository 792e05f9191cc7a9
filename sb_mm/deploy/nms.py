"""Non-maximum suppression inside of an exported detector."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sb_mm.errors import UserInputError


@torch.library.custom_op('sb_mm::suppress', mutates_args=())
def suppress(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float
) -> Tensor:
    """Select of boxes ``(B, K, 4)`` as ONNX's ``NonMaxSuppression`` does.

    Return ``(D, 3)``: the index along B, 0, the index along K.
    """
    from torchvision.ops import nms

    rows = []
    for i, (box, score) in enumerate(zip(boxes, scores[:, 0], strict=True)):
        kept = nms(box, score, iou_threshold)
        kept = kept[score[kept] > score_threshold]
        rows += [torch.stack([kept.new_full(kept.shape, i), kept * 0, kept])]
    return torch.cat(rows, 1).T.contiguous()


@suppress.register_fake
def _(boxes: Tensor, *_) -> Tensor:
    detections = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(detections, 3, dtype=torch.int64)


def translations() -> dict[Callable, Callable]:
    """Return what :func:`suppress` is in ONNX."""
    from onnxscript import opset18 as op

    def in_onnx(boxes: object, scores: object, *limits: float) -> object:
        every = op.Constant(value_ints=[2**31 - 1])
        iou, score = (op.Constant(value_floats=[x]) for x in limits)
        return op.NonMaxSuppression(boxes, scores, every, iou, score)

    return {torch.ops.sb_mm.suppress.default: in_onnx}


class Suppression(nn.Module):
    """What mmdet does to the boxes and scores of all priors.

    Boxes, x1, y1, x2, y2 in pixels, are clipped afterwards to the input of
    ``size`` (H, W), as by ``SSDLiteHead``. ``max_per_img`` of the head's
    ``test_cfg`` is left to whoever uses the result.

    Raises:
        UserInputError: If ``test_cfg`` asks for what cannot be exported; of
            ``nms_pre``, when it is called.
    """

    def __init__(self, test_cfg: dict, size: tuple[int, int]) -> None:
        super().__init__()
        nms = test_cfg['nms']
        if nms.get('type', 'nms') != 'nms' or nms.get('class_agnostic'):
            raise UserInputError(
                f'test_cfg.nms={dict(nms)} cannot be exported: use '
                "type='nms', class by class, or leave --nms out."
            )
        self.test_cfg = test_cfg
        corner = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
        self.register_buffer('corner', corner)

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        """Select from boxes ``(N, P, 4)`` and scores ``(N, P, classes)``.

        Returns:
            The index in the batch ``(D,)``, the label ``(D,)``, the box
            ``(D, 4)``, the score ``(D,)``; by image, label, falling score.
        """
        cfg, (priors, classes) = self.test_cfg, scores.shape[1:]
        if 0 < cfg.get('nms_pre', -1) < priors * classes:
            raise UserInputError(
                f'test_cfg.nms_pre={cfg["nms_pre"]} keeps only some of the '
                f'{priors * classes} scores of an image, which cannot be '
                'exported: use candidates_per_class, or leave --nms out.'
            )
        candidates = min(cfg.get('candidates_per_class') or priors, priors)
        scores, index = scores.transpose(1, 2).topk(candidates)
        rows = index.flatten(1)[..., None].expand(-1, -1, 4)
        boxes = boxes.gather(1, rows).reshape(-1, candidates, 4)
        scores = scores.reshape(-1, candidates)
        sides = boxes[..., 2:] - boxes[..., :2]
        # Suppression leaves out what scores nothing.
        scores = scores * (sides > cfg.get('min_bbox_size', -1)).all(-1)
        selected = torch.ops.sb_mm.suppress(
            boxes,
            scores[:, None],
            cfg['nms']['iou_threshold'],
            float(cfg.get('score_thr', 0)),
        )
        group, _, rank = selected.unbind(1)
        flat = group * candidates + rank
        return (
            group // classes,
            group % classes,
            boxes.flatten(0, 1)[flat].clamp(min=0).minimum(self.corner),
            scores.flatten()[flat],
        )


class SuppressingDetector(nn.Module):
    """An ``ExportedDetector`` from pixels to the rows of a Suppression."""

    output_names = ('image', 'label', 'box', 'score')

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        test_cfg = detector.model.bbox_head.test_cfg
        self.suppression = Suppression(test_cfg, detector.size)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images ``(N, 3, H, W)`` to detections."""
        return self.suppression(*self.detector(images))
