"""Whether an exported file gives what the network gives."""

import copy
from collections.abc import Iterator

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch.testing import assert_close

from sb_mm.errors import UserInputError

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
    ``reference``, and what follows from them with ``model.test_step``, in
    which nothing of sb_mm's export has a part.

    Yields:
        Lines that say what was compared, and how far it differs.

    Raises:
        ExportFailedError: If they differ by more than rounding does, or are
            not finite.
    """
    outputs = [_outputs(reference, batch) for batch in batches]
    if 'image' not in runner.names:
        found = [runner.run(_images(batch)) for batch in batches]
        for name in runner.names:
            worst = max(
                _check_close(name, f[name], o[name])
                for f, o in zip(found, outputs, strict=True)
            )
            yield f'largest difference of {name} from PyTorch: {worst:.1e}'
    if hasattr(model, 'bbox_head'):
        yield _compare_detections(runner, model, batches, outputs)
        return
    for batch, o in zip(batches, outputs, strict=True):
        samples = model.test_step(copy.deepcopy(batch))
        wanted = torch.stack([s.pred_score for s in samples])
        _check_close('scores', o['scores'], wanted)
    yield 'PyTorch gives the scores of test_step'


def _images(batch: dict) -> Tensor:
    return torch.stack(list(batch['inputs'])).float()


def _outputs(reference: nn.Module, batch: dict) -> dict[str, Tensor]:
    """Return the outputs of the exported form by name."""
    outputs = reference(_images(batch))
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    if not all(o.isfinite().all() for o in outputs):
        raise ExportFailedError(
            'What the network itself gives is not finite: check the '
            'checkpoint; no file was written.'
        )
    return dict(zip(reference.output_names, outputs, strict=True))


def _check_close(name: str, found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference; raise if it is no rounding."""
    try:
        assert_close(found, wanted, **TOLERANCES[name])
    except AssertionError as error:
        lines = [line for line in str(error).splitlines() if line]
        raise ExportFailedError(
            f'The {name} differ from those of PyTorch '
            f'({"; ".join(lines[1:])}): no file was written.'
        ) from error
    return (found - wanted).abs().max().item()


def _compare_detections(
    runner: OnnxRunner,
    model: BaseModel,
    batches: list[dict],
    outputs: list[dict[str, Tensor]],
) -> str:
    differ = total = 0
    for batch, o in zip(batches, outputs, strict=True):
        try:
            found = runner.predict(batch)
        except UserInputError as error:
            # Whoever uses raw outputs suppresses in a way of their own.
            return f'detections not compared with test_step: {error}'
        for samples in (found, model.test_step(copy.deepcopy(batch))):
            raw = zip(samples, o['boxes'], o['scores'], strict=True)
            differ += sum(unexplained(*r, model.bbox_head) for r in raw)
            total += sum(len(s.pred_instances) for s in samples)
    line = (
        f'{differ} of {total} detections of the file and of test_step do not '
        "follow from the network's boxes and scores"
    )
    if differ > MAY_DIFFER * total:
        raise ExportFailedError(f'{line}: no file was written.')
    return line


def unexplained(
    sample: BaseDataElement, boxes: Tensor, scores: Tensor, head: nn.Module
) -> int:
    """Count an image's detections that boxes and scores do not explain.

    Each has to be one of the priors' boxes ``(P, 4)`` and scores
    ``(P, classes)``, up to rounding, and together they have to be what the
    head selects. Where scores are tied, as in a young network, rounding
    decides which of two boxes suppresses the other: so the scores of the
    detections are raised before the head selects again.
    """
    found, cfg = sample.pred_instances, head.test_cfg
    shape = sample.metainfo['img_shape'][:2]
    scale = sample.metainfo.get('scale_factor', (1, 1))
    bboxes = found.bboxes * found.bboxes.new_tensor(scale).repeat(2)
    corner = boxes.new_tensor([*shape[::-1]] * 2)
    clipped = boxes.clamp(min=0).minimum(corner)
    # As of a logit: next to 0 and 1 it matters less.
    rounding = TOLERANCES['scores']['rtol'] * scores * (1 - scores)
    rounding += TOLERANCES['scores']['atol']
    distance = (clipped[:, None] - bboxes).abs().amax(-1)
    off = (scores[:, found.labels] - found.scores).abs()
    distance[~(off <= rounding[:, found.labels])] = torch.inf
    distance, prior = distance.min(0)
    here = distance <= TOLERANCES['boxes']['atol']
    mine = torch.zeros_like(scores, dtype=torch.bool)
    mine[prior[here], found.labels[here]] = True
    selected = _select(boxes, scores + 2 * rounding * mine, head, shape)
    # At the threshold and at a class's last candidate, rounding decides.
    clear = (scores - cfg.get('score_thr', 0)).abs() > rounding
    last = cfg.get('candidates_per_class') or len(scores)
    if last < len(scores):
        floor = scores.topk(last, 0).values[-1]
        clear &= (scores - floor).abs() > 2 * rounding
    return int((~here).sum() + ((selected != mine) & clear).sum())


def _select(
    boxes: Tensor, scores: Tensor, head: nn.Module, shape: tuple[int, int]
) -> Tensor:
    """Return which scores the head reports, ``(P, classes)``."""
    cfg = head.test_cfg
    above = scores > cfg.get('score_thr', 0)
    prior, labels = above.nonzero(as_tuple=True)
    candidates = InstanceData(
        bboxes=boxes[prior], scores=scores[above], labels=labels, prior=prior
    )
    meta = dict(img_shape=shape)
    kept = head._bbox_post_process(candidates, cfg, img_meta=meta)
    selected = torch.zeros_like(above)
    selected[kept.prior, kept.labels] = True
    return selected
