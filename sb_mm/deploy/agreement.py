"""Whether an exported file gives what the network gives."""

import copy
from collections.abc import Callable, Iterable, Iterator

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from .onnx_runner import OnnxRunner

# From PyTorch; a box's in pixels. ONNX Runtime's sums over the pixels round
# more than PyTorch's, and a box multiplies what is left of it by its size: a
# trained SSDLite x0.35 came to 5e-5 and 1e-2.
TOLERANCES = dict(
    scores=dict(rtol=2e-3, atol=1e-5), boxes=dict(rtol=1e-4, atol=5e-2)
)
# Of the number of detections and of the sum of their scores. Where thousands
# of scores are tied, as in a young network, rounding decides which boxes
# suppress the others: on one image it came to 3 %.
MAY_DIFFER = 0.05


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
    tested = _samples(model.test_step, batches)
    if hasattr(model, 'bbox_head'):
        _check_rows(tested, wanted)
    else:
        scores = torch.stack([sample.pred_score for sample in tested])
        _check_close('scores', scores, *wanted)
    if 'image' in runner.names:
        found = _samples(runner.predict, batches)
        _check_rows(found, wanted)
        yield _check_totals(found, tested)
        return
    values = _joined(map(runner.run, inputs))
    for name, *pair in zip(runner.names, values, wanted, strict=True):
        worst = _check_close(name, *pair)
        yield f'largest difference of {name} from PyTorch: {worst:.1e}'


def _joined(outputs: Iterable[Tensor | tuple[Tensor, ...]]) -> list[Tensor]:
    """Join the outputs of all batches."""
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


def _check_rows(samples: list[BaseDataElement], wanted: list[Tensor]) -> None:
    """Check that detections are of the priors' boxes and scores."""
    if unknown := sum(map(_unknown, samples, *wanted)):
        raise ExportFailedError(
            f'{unknown} detections differ from all boxes and scores of '
            'PyTorch: no file was written.'
        )


def _unknown(sample: BaseDataElement, boxes: Tensor, scores: Tensor) -> int:
    """Count detections that are none of ``(P, 4)`` and ``(P, classes)``."""
    found = sample.pred_instances
    height, width = sample.metainfo['img_shape'][:2]
    corner = boxes.new_tensor([width, height] * 2)
    scale = boxes.new_tensor(sample.metainfo.get('scale_factor', (1, 1)))
    bboxes = found.bboxes * scale.repeat(2)
    clipped = boxes.clamp(min=0).minimum(corner)[:, None]
    here = clipped.isclose(bboxes, **TOLERANCES['boxes']).all(-1)
    score = scores[:, found.labels]
    here &= score.isclose(found.scores, **TOLERANCES['scores'])
    return int((~here.any(0)).sum())


def _check_totals(
    found: list[BaseDataElement], tested: list[BaseDataElement]
) -> str:
    """Check how many detections there are, and the sum of their scores."""
    a, b = (
        torch.cat([s.pred_instances.scores for s in samples])
        for samples in (found, tested)
    )
    line = f'{len(a)} detections of the file, {len(b)} of test_step'
    for x, y in ((len(a), len(b)), (a.sum(), b.sum())):
        if abs(x - y) > MAY_DIFFER * y:
            raise ExportFailedError(f'{line}: no file was written.')
    return line
