"""Whether an exported file gives what the network gives."""

import copy
from collections.abc import Callable, Iterable, Iterator

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torchvision.ops import box_iou

from .onnx_runner import OnnxRunner

# From PyTorch; a box's in pixels. ONNX Runtime's sums over the pixels round
# more than PyTorch's, and a box multiplies what is left of it by its size: a
# trained SSDLite x0.35 came to 5e-5 and 1e-2.
TOLERANCES = dict(
    scores=dict(rtol=2e-3, atol=1e-5), boxes=dict(rtol=1e-4, atol=5e-2)
)
# Of all detections: an overlap may lie right at the suppression's threshold.
MAY_DIFFER = 0.005


class ExportFailedError(RuntimeError):
    """The file does not compute what the network does."""


@torch.no_grad()
def compare(
    runner: OnnxRunner,
    reference: nn.Module,
    model: BaseModel,
    batches: list[dict],
) -> Iterator[str]:
    """Compare a file with the network that it was made from.

    Its outputs are compared with those of the network's exported form, the
    ``reference``; and these with ``model.test_step``, in which nothing of
    sb_mm's export has a part.

    Yields:
        Lines that say what was compared, and how far it differs.

    Raises:
        ExportFailedError: If they differ by more than rounding does, or are
            not finite.
    """
    inputs = [torch.stack(list(batch['inputs'])).float() for batch in batches]
    wanted = _joined(map(reference, inputs))
    if not all(value.isfinite().all() for value in wanted):
        raise ExportFailedError(
            'What the network itself gives is not finite: check the '
            'checkpoint; no file was written.'
        )
    samples = _samples(model.test_step, batches)
    suppresses = 'image' in runner.names
    if suppresses:
        samples += _samples(runner.predict, batches)
    else:
        found = _joined(map(runner.run, inputs))
        for name, *pair in zip(runner.names, found, wanted, strict=True):
            worst = _check_close(name, *pair)
            yield f'largest difference of {name} from PyTorch: {worst:.1e}'
    if not hasattr(model, 'bbox_head'):
        scores = torch.stack([sample.pred_score for sample in samples])
        _check_close('scores', scores, *wanted)
        return
    cfg = model.bbox_head.test_cfg
    if (cfg.get('nms') or {}).get('type', 'nms') == 'nms':
        yield _check_detections(samples, wanted, cfg, suppresses)
    else:  # such as soft_nms
        yield 'detections not compared: suppression changes their scores'


def _joined(outputs: Iterable[Tensor | tuple[Tensor, ...]]) -> list[Tensor]:
    rows = [o if isinstance(o, tuple) else (o,) for o in outputs]
    return [torch.cat(values) for values in zip(*rows, strict=True)]


def _samples(
    predict: Callable[[dict], list], batches: list[dict]
) -> list[BaseDataElement]:
    return [s for batch in batches for s in predict(copy.deepcopy(batch))]


def _check_close(name: str, found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference; raise if it is no rounding."""
    worst = (found - wanted).abs().max().item()
    if not torch.allclose(found, wanted, **TOLERANCES[name]):
        raise ExportFailedError(
            f'The {name} differ from those of PyTorch by up to {worst:.1e}: '
            'no file was written.'
        )
    return worst


def _check_detections(
    samples: list[BaseDataElement],
    wanted: list[Tensor],
    test_cfg: dict,
    suppresses: bool,
) -> str:
    """Check the detections of test_step, and those of a file behind them."""
    images = 2 * list(zip(*wanted, strict=True))
    differ = sum(
        _unexplained(sample, *image, test_cfg, suppresses)
        for sample, image in zip(samples, images, strict=False)
    )
    total = sum(len(sample.pred_instances) for sample in samples)
    line = (
        f"{differ} of {total} detections do not follow from PyTorch's boxes "
        'and scores'
    )
    if differ > MAY_DIFFER * total:
        raise ExportFailedError(f'{line}: no file was written.')
    return line


def _unexplained(
    sample: BaseDataElement,
    boxes: Tensor,
    scores: Tensor,
    cfg: dict,
    suppresses: bool,
) -> int:
    """Count an image's detections that boxes and scores do not explain.

    Each has to be one of the priors' boxes ``(P, 4)``, clipped to the image,
    with its score in ``(P, classes)``; and if the file ``suppresses``,
    together they have to be what ``cfg``, the head's, selects.
    """
    found = sample.pred_instances
    height, width = sample.metainfo['img_shape'][:2]
    scale = boxes.new_tensor(sample.metainfo.get('scale_factor', (1, 1)))
    bboxes = found.bboxes * scale.repeat(2)
    corner = boxes.new_tensor([width, height] * 2)
    clipped = boxes.clamp(min=0).minimum(corner)[:, None]
    limit = cfg.get('score_thr', 0)
    if 0 < len(found) == cfg.get('max_per_img'):
        limit = max(limit, found.scores.min().item())
    count = 0
    for label, score in enumerate(scores.T):
        own = found.labels == label
        values = found.scores[own]
        fits = score[:, None].isclose(values, **TOLERANCES['scores'])
        off = (clipped - bboxes[own]).abs().amax(-1)
        fits &= off <= TOLERANCES['boxes']['atol']
        count += int((~fits.any(0)).sum())
        if suppresses:
            count += _misjudged(fits, boxes, score, limit, cfg)
    return count


def _misjudged(
    fits: Tensor, boxes: Tensor, scores: Tensor, limit: float, cfg: dict
) -> int:
    """Count the priors of a class that suppression treats otherwise.

    Clipped, many boxes are the same: of the priors that fit ``(P, D)``, a
    detection may be any. So each of them may suppress others, and only where
    it is the only one nothing may suppress it. Where scores are tied, as in a
    young network, either may be the better.
    """
    # As of a logit: next to 0 and 1, rounding matters less.
    margin = TOLERANCES['scores']['rtol'] * scores * (1 - scores)
    margin = 2 * (margin + TOLERANCES['scores']['atol'])
    candidates = cfg.get('candidates_per_class') or len(scores)
    last = scores.topk(min(candidates, len(scores))).values[-1]
    floor = last.clamp(min=limit)
    kept, sure = fits.any(1), fits.T[fits.sum(0) == 1].nonzero()[:, 1]
    overlaps = box_iou(boxes, boxes[kept]) > cfg['nms']['iou_threshold']
    beaten = overlaps & (scores[kept] >= (scores - margin)[:, None])
    large = (boxes[:, 2:] - boxes[:, :2]).amin(1) > cfg.get(
        'min_bbox_size', -1
    )
    missing = large & (scores > floor + margin) & ~kept & ~beaten.any(1)
    below = (scores < floor - margin)[sure]
    each = box_iou(boxes[sure], boxes[sure]).triu(1)
    twice = each > cfg['nms']['iou_threshold']
    return int(missing.sum() + below.sum() + twice.sum())
