"""What stops the targets that are not reached, in the words of the page.

Every number is of the results.
"""

import math
import statistics
from collections.abc import Iterator

from . import dynamic_conv, targets, training
from .measurement import Measurement
from .networks import SB, STATIC
from .results import Result

_GPU = (
    '- **GPU.** Some rows need one and are `not run`: `python '
    'benchmarks/run.py --only detector_step detector_loop cifar_pipeline '
    'side_by_side --device cuda --out results/performance.json` fills them.'
)


def limits(found: dict[str, Result]) -> str:
    """Return a list in Markdown."""
    parts = [
        *_dynamic_conv(found),
        *_training_step(found),
        *([_GPU] if _needs_gpu(found) else []),
    ]
    return '\n'.join(parts) or 'Nothing.'


def missed(found: dict[str, Result], benchmark: str, words: str) -> bool:
    """Tell whether a target of a benchmark with these words was missed."""
    return any(
        target.benchmark == benchmark
        and words in target.what
        and target.row(found)[-1] == '**no**'
        for target in targets.TARGETS
    )


def _needs_gpu(found: dict[str, Result]) -> bool:
    return any(
        target.case.get('device') == 'cuda'
        and target.row(found)[2] == targets.NOT_RUN
        for target in targets.TARGETS
    )


def _dynamic_conv(found: dict[str, Result]) -> Iterator[str]:
    if missed(found, 'dynamic_conv', 'pointwise'):
        ratios = _of_widths(found, 'pointwise', dynamic_conv.GROUPED_ALONE)
        if ratios:
            low, high = _speeds(found['dynamic_conv'].measurements)
            yield (
                '- **DyConv, pointwise.** The matrix products are what is '
                'left: without gate and mixing of kernels in both forms, the '
                f'grouped convolution takes {ratios} times as long as they '
                f'do. They compute {low:.0f} to {high:.0f} GFLOP/s, as the '
                'layer may be.'
            )
    if missed(found, 'dynamic_conv', 'depthwise'):
        ratios = _of_widths(found, 'depthwise', dynamic_conv.OURS)
        if ratios:
            yield (
                '- **DyConv, depthwise.** All forms call the same grouped '
                'convolution. Gate and mixing included, sb_mm takes '
                f'{ratios} times as long as that convolution alone, which is '
                'all that there is to gain.'
            )


def _of_widths(found: dict[str, Result], kind: str, top: str) -> str:
    """Return the ratios to the convolution alone, with their widths."""
    ratios = {
        width: targets.ratio(
            found,
            'dynamic_conv',
            dict(width=width, kind=kind),
            [top],
            [dynamic_conv.ALONE],
        )
        for width in (0.5, 1.0)
    }
    return _join({w: f'{r.median:.2f}' for w, r in ratios.items() if r})


def _join(texts: dict[float, str]) -> str:
    return ' and '.join(f'{t} (x{width})' for width, t in texts.items())


def _speeds(measurements: list[Measurement]) -> tuple[float, float]:
    """Return the lowest and the highest GFLOP/s of the matrix products."""
    speeds = [
        _operations(m.case) / statistics.median(m.values) / 1e6
        for m in measurements
        if m.contender == dynamic_conv.ALONE and m.case['kind'] == 'pointwise'
    ]
    return min(speeds), max(speeds)


def _operations(case: dict) -> int:
    """Count those of a product forward and of two backward."""
    pixels = math.ceil(case['size'] / case['stride']) ** 2
    return 3 * 2 * case['batch'] * case['inputs'] * case['outputs'] * pixels


def _training_step(found: dict[str, Result]) -> Iterator[str]:
    if not missed(found, 'training_step', 'SB / static'):
        return
    longer = _longer(found, training.NCHW)
    if not longer:
        return
    text = (
        '- **Training step.** A step on 32 pixels (below) has next to no '
        f'pixels to compute, and SB takes {_ms(longer)} longer than static in '
        'it: that is the many small calls for each gate, forward and '
        "backward, and the optimizer's for its parameters. They do not grow "
        'with the image.'
    )
    shares = _shares(found, training.NHWC)
    if shares:
        text += (
            f' In {training.NHWC} at batch 16 that alone makes {shares}; the '
            'rest is one pass over the features for the pooling and one for '
            "the shift's gradient."
        )
    yield text + ' SE pays the same calls, and more passes.'


def _ms(longer: dict[float, float]) -> str:
    return _join({width: f'{ms:.0f} ms' for width, ms in longer.items()})


def _longer(found: dict[str, Result], layout: str) -> dict[float, float]:
    """Return by width how many ms SB takes longer than static in `calls`."""
    times = _times(found, 'calls', layout, 16)
    return {w: t[SB] - t[STATIC] for w, t in times.items()}


def _shares(found: dict[str, Result], layout: str) -> str:
    times = _times(found, 'training_step', layout, 16)
    longer = _longer(found, layout)
    return _join(
        {
            width: f'{1 + longer[width] / t[STATIC]:.2f}'
            for width, t in times.items()
            if width in longer
        }
    )


def _times(
    found: dict[str, Result], benchmark: str, layout: str, batch: int
) -> dict[float, dict[str, float]]:
    """Return the medians by width, then by contender."""
    times: dict[float, dict[str, float]] = {}
    for taken in found[benchmark].measurements if benchmark in found else ():
        case = taken.case
        if case['layout'] == layout and case['batch'] == batch:
            each = times.setdefault(case['width'], {})
            each[taken.contender] = statistics.median(taken.values)
    return times
