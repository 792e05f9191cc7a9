"""Whether an exported file gives what the network gives."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from sb_mm.errors import UserInputError

from .onnx_runner import OnnxRunner

# Largest difference from PyTorch: of a score, and of a box in pixels. ONNX
# Runtime's sums over the pixels round 30 times as much as PyTorch's, and a
# box multiplies what is left of it by its size; a trained SSDLite x0.35 came
# to 5e-5 and 1e-2.
TOLERANCES = dict(scores=5e-4, boxes=5e-2)


class ExportFailedError(RuntimeError):
    """The file does not compute what the network does."""


def compare(
    runner: OnnxRunner,
    reference: nn.Module,
    model: BaseModel,
    batches: list[dict],
) -> Iterator[str]:
    """Compare a file with the network that it was made from.

    Its numbers are compared with those of the network's exported form, and
    what follows from them with ``model.test_step``, in which nothing of
    sb_mm's export has a part.

    Args:
        runner: Of the file.
        reference: :func:`~sb_mm.deploy.exportable.wrap` of the network.
        model: The network itself.
        batches: As a loader gives them; their images are of one size.

    Yields:
        Lines that say how far they differ.

    Raises:
        ExportFailedError: If they differ by more than rounding does, or the
            network gives numbers that are none.
    """
    worst: dict[str, float] = {}
    for batch in batches:
        expected = _expected(reference, batch)
        for name, value in _differences(runner, expected, batch):
            # Unlike max(), this keeps what is not a number.
            worst[name] = float(np.maximum(worst.get(name, 0.0), value))
    sizes = sorted({len(batch['inputs']) for batch in batches})
    images = f'batches of {" and ".join(map(str, sizes))}'
    for name, value in worst.items():
        unit = ' pixels' if name == 'boxes' else ''
        line = (
            f'largest difference of {name} from PyTorch, {images}: '
            f'{value:.1e}{unit}'
        )
        yield line
        _require(value <= TOLERANCES[name], line, f'{TOLERANCES[name]:g}')
    if hasattr(model, 'bbox_head'):
        yield from _compare_detections(runner, reference, model, batches)
    else:
        yield _compare_scores(runner, model, batches)


def _require(holds: bool, line: str, limit: str) -> None:
    if not holds:
        raise ExportFailedError(
            f'{line}, but at most {limit} is rounding; no file was written.'
        )


def _expected(reference: nn.Module, batch: dict) -> dict[str, Tensor]:
    """Return the outputs of the exported form by name."""
    with torch.no_grad():
        outputs = reference(torch.stack(list(batch['inputs'])).float())
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    for name, value in zip(reference.output_names, outputs, strict=True):
        if not value.isfinite().all():
            raise ExportFailedError(
                f'The {name} of the network itself are not finite: check the '
                'checkpoint; no file was written.'
            )
    return dict(zip(reference.output_names, outputs, strict=True))


def _differences(
    runner: OnnxRunner, expected: dict[str, Tensor], batch: dict
) -> Iterator[tuple[str, float]]:
    """Yield each output's name and its largest absolute difference."""
    outputs = runner.run(torch.stack(list(batch['inputs'])))
    if 'image' not in outputs:
        for name, value in expected.items():
            yield name, (outputs[name] - value).abs().max().item()
        return
    # Detections have no twin in a fixed place: each is looked for among
    # PyTorch's candidates.
    rows = zip(*outputs.values(), strict=True)
    for image, label, box, score in rows:
        candidates = expected['scores'][image, :, label]
        height, width = batch['inputs'][0].shape[1:]
        corner = torch.tensor([width, height] * 2)
        boxes = expected['boxes'][image].clamp(min=0).minimum(corner)
        boxes = (boxes - box).abs().amax(1)
        # Of the priors that score the same, that with the same box.
        near = (candidates - score).abs() <= TOLERANCES['scores']
        yield 'scores', (candidates - score).abs().min().item()
        yield 'boxes', boxes[near].min().item() if near.any() else 0.0


@torch.no_grad()
def _predictions(
    runner: OnnxRunner, model: BaseModel, batch: dict
) -> Iterator[tuple[BaseDataElement, BaseDataElement]]:
    """Yield the file's and the network's sample of each image."""
    wanted = model.test_step(copy.deepcopy(batch))
    return zip(runner.predict(batch), wanted, strict=True)


def _compare_scores(
    runner: OnnxRunner, model: BaseModel, batches: list[dict]
) -> str:
    worst = max(
        (found.pred_score - wanted.pred_score).abs().max().item()
        for batch in batches
        for found, wanted in _predictions(runner, model, batch)
    )
    line = f'largest difference of pred_score from test_step: {worst:.1e}'
    _require(worst <= TOLERANCES['scores'], line, f'{TOLERANCES["scores"]:g}')
    return line


def _compare_detections(
    runner: OnnxRunner,
    reference: nn.Module,
    model: BaseModel,
    batches: list[dict],
) -> Iterator[str]:
    wrong = total = 0
    try:
        for batch in batches:
            scores = _expected(reference, batch)['scores']
            last = _last_candidates(scores, model.bbox_head.test_cfg)
            pairs = _predictions(runner, model, batch)
            for floors, (found, wanted) in zip(last, pairs, strict=True):
                detections = [_in_input_pixels(s) for s in (found, wanted)]
                cfg = model.bbox_head.test_cfg
                wrong += disagreements(*detections, floors, cfg)
                total += len(wanted.pred_instances)
    except UserInputError as error:
        # The raw outputs are compared, and whoever uses them suppresses.
        yield f'detections not compared with test_step: {error}'
        return
    line = (
        f'detections of the file or of test_step that the other lacks, of '
        f'{total}: {wrong}'
    )
    yield line
    _require(wrong == 0, line, '0')


def _last_candidates(scores: Tensor, cfg: dict) -> Tensor:
    """Return the score of the last candidate, ``(N, classes)``."""
    priors = scores.size(1)
    candidates = min(cfg.get('candidates_per_class') or priors, priors)
    return scores.topk(candidates, dim=1).values[:, -1]


def _in_input_pixels(sample: BaseDataElement) -> InstanceData:
    found = sample.pred_instances
    scale = sample.metainfo.get('scale_factor', (1, 1))
    factor = found.bboxes.new_tensor(scale).repeat(2)
    return InstanceData(
        bboxes=found.bboxes * factor, labels=found.labels, scores=found.scores
    )


def disagreements(
    found: InstanceData, wanted: InstanceData, floors: Tensor, cfg: dict
) -> int:
    """Count the detections that only one of two has, for no reason.

    Rounding decides where a score lies at a threshold or an overlap at that
    of the suppression, and what that decides for a box decides for those it
    would have suppressed; these are not counted.

    Args:
        found: Boxes ``(F, 4)`` in pixels, labels ``(F,)``, scores ``(F,)``.
        wanted: The same, ``W`` of them.
        floors: Score of the last candidate of each class, ``(classes,)``.
        cfg: The head's ``test_cfg``.
    """
    same = found.labels[:, None] == wanted.labels
    box = (found.bboxes[:, None] - wanted.bboxes).abs().amax(-1)
    score = (found.scores[:, None] - wanted.scores).abs()
    twins = same & (box <= TOLERANCES['boxes'])
    twins &= score <= TOLERANCES['scores']
    alone = found[~twins.any(1)], wanted[~twins.any(0)]
    every = (wanted, found)
    limits = [*_limits(found, cfg), *_limits(wanted, cfg)]
    threshold = cfg['nms']['iou_threshold']
    decided = [
        _at_a_limit(mine, floors, limits)
        | _at_the_overlap(mine, others, threshold)
        for mine, others in zip(alone, every, strict=True)
    ]
    _follow(alone, decided, threshold)
    return sum(int((~by_rounding).sum()) for by_rounding in decided)


def _limits(detections: InstanceData, cfg: dict) -> list[float]:
    """Return the scores at which an image's detections end."""
    most = cfg.get('max_per_img', -1)
    full = 0 < most <= len(detections)
    last = [detections.scores.min().item()] if full else []
    return [float(cfg.get('score_thr', 0)), *last]


def _at_a_limit(
    alone: InstanceData, floors: Tensor, limits: list[float]
) -> Tensor:
    limits = alone.scores.new_tensor(limits).expand(len(alone), -1)
    limits = torch.cat([limits, floors[alone.labels][:, None]], 1)
    distances = (alone.scores[:, None] - limits).abs()
    return (distances <= TOLERANCES['scores']).any(1)


def _at_the_overlap(
    alone: InstanceData, others: InstanceData, threshold: float
) -> Tensor:
    distances = (_overlaps(alone, others) - threshold).abs()
    return (distances <= _slack(alone)).any(1)


def _slack(detections: InstanceData) -> Tensor:
    """Return by how much rounding changes a box's overlaps, ``(D, 1)``."""
    boxes = detections.bboxes
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    # Of two boxes, each edge.
    return (4 * TOLERANCES['boxes'] / sides).sum(1, True)


def _follow(
    alone: tuple[InstanceData, InstanceData],
    decided: list[Tensor],
    threshold: float,
) -> None:
    """Add what is suppressed in one by what only that one has, in place."""
    overlap = _overlaps(*alone) > threshold
    while True:
        before = [int(d.sum()) for d in decided]
        decided[0] |= overlap[:, decided[1]].any(1)
        decided[1] |= overlap[decided[0]].any(0)
        if before == [int(d.sum()) for d in decided]:
            return


def _overlaps(a: InstanceData, b: InstanceData) -> Tensor:
    """Return the IoU of boxes of one class, and 0 of others."""
    from torchvision.ops import box_iou

    return box_iou(a.bboxes, b.bboxes) * (a.labels[:, None] == b.labels)
