"""Non-maximum suppression inside of an exported detector."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sb_mm.errors import UserInputError


@torch.library.custom_op('sb_mm::suppress', mutates_args=())
def suppress(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float
) -> Tensor:
    """Select boxes as ONNX's ``NonMaxSuppression`` does.

    Of boxes ``(B, K, 4)`` and scores ``(B, 1, K)``, return ``(D, 3)``: the
    index along B, 0, the index along K.
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

    Boxes are clipped to the image afterwards, as by ``SSDLiteHead``.
    ``max_per_img`` is left to whoever uses the result.

    Args:
        test_cfg: The head's.
        num_priors: Prior boxes of an image.
        num_classes: Classes without the background.
        size: Height and width of the input in pixels.

    Raises:
        UserInputError: If ``test_cfg`` asks for what cannot be exported.
    """

    def __init__(
        self,
        test_cfg: dict,
        num_priors: int,
        num_classes: int,
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        nms, first = test_cfg['nms'], test_cfg.get('nms_pre', -1)
        if nms.get('type', 'nms') != 'nms' or nms.get('class_agnostic'):
            raise UserInputError(
                f'test_cfg.nms={dict(nms)} cannot be exported: use '
                "type='nms', class by class, or leave --nms out."
            )
        if 0 < first < num_priors * num_classes:
            raise UserInputError(
                f'test_cfg.nms_pre={first} keeps only some of the '
                f'{num_priors * num_classes} scores of an image, which cannot '
                'be exported: use candidates_per_class, or leave --nms out.'
            )
        wanted = test_cfg.get('candidates_per_class') or num_priors
        self.candidates = min(wanted, num_priors)
        self.min_side = test_cfg.get('min_bbox_size', -1)
        self.iou_threshold = nms['iou_threshold']
        self.score_threshold = float(test_cfg.get('score_thr', 0))
        corner = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
        self.register_buffer('corner', corner)

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        """Return one row a detection.

        Args:
            boxes: ``(N, P, 4)``, x1, y1, x2, y2 in pixels.
            scores: ``(N, P, classes)``, 0 to 1.

        Returns:
            The index in the batch ``(D,)``, the label ``(D,)``, the box
            ``(D, 4)``, the score ``(D,)``; by image, then by label, then by
            falling score.
        """
        classes = scores.size(2)
        scores, index = scores.transpose(1, 2).topk(self.candidates)
        rows = index.flatten(1)[..., None].expand(-1, -1, 4)
        boxes = boxes.gather(1, rows).reshape(-1, self.candidates, 4)
        scores = scores.reshape(-1, self.candidates)
        sides = boxes[..., 2:] - boxes[..., :2]
        # Suppression leaves out what scores nothing.
        scores = scores * (sides > self.min_side).all(-1)
        selected = torch.ops.sb_mm.suppress(
            boxes, scores[:, None], self.iou_threshold, self.score_threshold
        )
        group, _, rank = selected.unbind(1)
        flat = group * self.candidates + rank
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
        head = detector.model.bbox_head
        self.suppression = Suppression(
            head.test_cfg,
            len(detector.priors),
            head.num_classes,
            detector.size,
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images ``(N, 3, H, W)`` to detections."""
        return self.suppression(*self.detector(images))
