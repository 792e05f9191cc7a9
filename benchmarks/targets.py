"""What is aimed at, and what was reached of it."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from . import (
    cifar_pipeline,
    detector,
    distribution,
    dynamic_conv,
    inference,
    networks,
    pipeline,
    side_by_side,
)
from .measurement import RATE, Measurement
from .results import Result, key

HEADER = ['what', 'target', 'median (quartiles)', 'bound', 'reached']
NOT_RUN = 'not run'


@dataclass(frozen=True)
class Ratio:
    """A ratio of two contenders: over the rounds, median and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f'{self.median:.2f} ({self.low:.2f}-{self.high:.2f})'


@dataclass(frozen=True)
class Target:
    """What a ratio should be.

    Attributes:
        what: It is the ratio of.
        benchmark: That measures it.
        case: Entries that the cases must have; the geometric mean over them
            counts.
        top: Contender above the line; of several, the fastest.
        bottom: Contender below the line; of several, the fastest.
        limit: Of the median.
        at_least: Whether the limit is the lowest that will do.
        floor: Contender that does only what cannot be left out; of several,
            the fastest. With it below the line, the ratio is the bound.
    """

    what: str
    benchmark: str
    case: dict
    top: Sequence[str]
    bottom: Sequence[str]
    limit: float
    at_least: bool = False
    floor: Sequence[str] = ()

    def target(self) -> str:
        """Return the limit in words."""
        return f'at {"least" if self.at_least else "most"} {self.limit:g}'

    def ratio(self, results: dict[str, Result]) -> Ratio | None:
        """Return what was measured; None if nothing was."""
        return ratio(results, self.benchmark, self.case, self.top, self.bottom)

    def bound(self, results: dict[str, Result]) -> Ratio | None:
        """Return the ratio to the floor; None if nothing was measured."""
        return ratio(results, self.benchmark, self.case, self.top, self.floor)

    def reached(self, ratio: Ratio) -> bool:
        """Tell whether the median is within the limit."""
        if self.at_least:
            return ratio.median >= self.limit
        return ratio.median <= self.limit

    def row(self, results: dict[str, Result]) -> list[str]:
        """Return what, target, measured, bound and whether it was reached."""
        found, bound = self.ratio(results), self.bound(results)
        if found is None:
            return [self.what, self.target(), NOT_RUN, '', '']
        return [
            self.what,
            self.target(),
            str(found),
            '' if bound is None else f'{bound.median:.2f}',
            _verdict(self.reached(found)),
        ]


@dataclass(frozen=True)
class Level:
    """What a measured value should be, beside nothing else.

    Attributes:
        what: It is.
        benchmark: That measures it.
        case: Entries that the case must have.
        contenders: Whose; of several, the lowest counts. None for all.
        limit: The lowest that will do; None if there is none.
    """

    what: str
    benchmark: str
    case: dict
    contenders: Sequence[str] | None
    limit: float | None

    def target(self) -> str:
        """Return the limit in words."""
        return 'none' if self.limit is None else f'at least {self.limit:,g}'

    def lowest(self, results: dict[str, Result]) -> Measurement | None:
        """Return what counts; None if nothing was measured."""
        result = results.get(self.benchmark)
        found = [
            taken
            for taken in (result.measurements if result else ())
            if self.case.items() <= taken.case.items()
            and (self.contenders is None or taken.contender in self.contenders)
        ]
        return min(
            found, key=lambda m: statistics.median(m.values), default=None
        )

    def row(self, results: dict[str, Result]) -> list[str]:
        """Return what, target, measured, bound and whether it was reached."""
        found = self.lowest(results)
        if found is None:
            return [self.what, self.target(), NOT_RUN, '', '']
        median, low, high = spread(found.values)
        text = f'{median:.4g}'
        if len(found.values) > 1:
            text += f' ({low:.4g}-{high:.4g})'
        if self.contenders is None:
            text += f', {found.contender}'
        reached = '' if self.limit is None else _verdict(median >= self.limit)
        return [self.what, self.target(), text, '', reached]


def _verdict(reached: bool) -> str:
    return 'yes' if reached else '**no**'


def ratio(
    results: dict[str, Result],
    benchmark: str,
    case: dict,
    top: Sequence[str],
    bottom: Sequence[str],
) -> Ratio | None:
    """Return a ratio, the geometric mean over cases; None if not measured.

    Args:
        results: Of the benchmarks.
        benchmark: See :class:`Target`, as for what follows.
        case: Entries that the cases must have.
        top: Contenders above the line.
        bottom: Contenders below the line.
    """
    result = results.get(benchmark)
    found = {} if result is None else by_case(result.measurements)
    pairs = [
        (_fastest(entry, top), _fastest(entry, bottom))
        for key, entry in found.items()
        if case.items() <= dict(key).items()
    ]
    # A tiny pass may add no memory, of which there is no ratio.
    pairs = [pair for pair in pairs if all(pair) and all(pair[1])]
    return mean_ratio(pairs) if pairs else None


def by_case(
    measurements: Iterable[Measurement],
) -> dict[tuple, dict[str, Measurement]]:
    """Return the measurements by case, then by contender."""
    cases: dict[tuple, dict[str, Measurement]] = {}
    for taken in measurements:
        key = tuple(taken.case.items())
        cases.setdefault(key, {})[taken.contender] = taken
    return cases


def _fastest(
    case: dict[str, Measurement], names: Sequence[str]
) -> list[float] | None:
    found = [case[name] for name in names if name in case]
    if not found:
        return None
    best = max if found[0].unit == RATE else min
    return best((m.values for m in found), key=statistics.median)


def mean_ratio(pairs: Sequence[tuple[list[float], list[float]]]) -> Ratio:
    """Return the geometric mean over pairs, round by round."""
    rounds = [
        math.prod(a / b for a, b in values) ** (1 / len(pairs))
        for values in zip(*(zip(*p, strict=True) for p in pairs), strict=True)
    ]
    return Ratio(*spread(rounds))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return median, lower and upper quartile."""
    if len(values) == 1:
        return (values[0],) * 3
    low, median, high = statistics.quantiles(values, method='inclusive')
    return median, low, high


def _runtimes(kind: str) -> list[str]:
    return [f'{kind}: {runtime}' for runtime in inference.AFTER_FOLDING]


def _steps() -> list[Target]:
    sb, static, se = networks.SB, networks.STATIC, networks.SE
    return [
        Target(
            f'4: training step x{width}, batch {batch}, {layout}, '
            f'SB / {other}',
            'training_step',
            dict(width=width, batch=batch, layout=layout),
            [sb],
            [other],
            limit,
        )
        for other, limit in ((static, 1.15), (se, 1.0))
        for layout in ('NCHW', 'channels_last')
        for width in (0.35, 1.0)
        for batch in (16, 32)
    ]


def _dynamic_conv() -> list[Target]:
    limits = dict(pointwise=1.8, depthwise=1.0)
    return [
        Target(
            f'3: DyConv {kind}, forward + backward, x{width}, {other} / '
            'sb_mm, geometric mean',
            'dynamic_conv',
            dict(width=width, kind=kind),
            [other],
            [dynamic_conv.OURS],
            limit,
            at_least=True,
            floor=[dynamic_conv.ALONE],
        )
        for kind, limit in limits.items()
        for other in (dynamic_conv.GROUPED, dynamic_conv.TIMM)
        for width in (0.5, 1.0)
    ]


def _inference() -> list[Target]:
    limits = ((0.35, networks.STATIC, 2.0), (1.0, networks.STATIC, 1.6))
    limits += ((0.35, networks.SE, 1.0), (1.0, networks.SE, 1.0))
    return [
        Target(
            f'5: one image, folded, best runtime, x{width}, SB / {other}',
            'inference',
            dict(width=width),
            _runtimes(networks.SB),
            _runtimes(other),
            limit,
        )
        for width, other, limit in limits
    ]


def _cifar_pipeline() -> list[Target | Level]:
    parts = cifar_pipeline
    width = f'SB x{parts.WIDTH}, batch {parts.BATCH}'
    names = {parts.PIPELINE: 'alone', parts.STEP: width}
    # On a GPU, mmpretrain's network is compiled as well.
    everything = [parts.OURS, parts.LAST, parts.COMPILED, parts.BOTH]
    ratios = [
        Target(
            f'8: CIFAR-10, {what} {names[what]}, on {place}, images/s, '
            f'{ours} / mmpretrain',
            key('cifar_pipeline', device),
            dict(what=what, batch=parts.BATCH, device=device),
            contenders,
            [parts.STOCK],
            limit,
            at_least=True,
        )
        for device, place, limit, ours, contenders in (
            ('cpu', 'the CPU', 1.0, 'sb_mm', [parts.OURS]),
            ('cuda', 'a GPU', 10.0, 'the fastest of sb_mm', everything),
        )
        for what in (parts.PIPELINE, parts.STEP)
    ]
    rates = [
        Level(
            f'8: CIFAR-10, training step {width}, on a GPU, {how}, images/s',
            key('cifar_pipeline', 'cuda'),
            dict(what=parts.STEP, batch=parts.BATCH, device='cuda'),
            [name],
            15_000,
        )
        for name, how in (
            (parts.OURS, 'compiled'),
            (parts.LAST, 'channels_last, compiled'),
            (parts.COMPILED, 'compiled with CUDA graphs'),
            (parts.BOTH, 'channels_last, compiled with CUDA graphs'),
            (parts.HALF, 'the same with bfloat16'),
        )
    ]
    together = [
        Level(
            f'8: CIFAR-10, {side_by_side.name(n)} of {width} at a time on a '
            'GPU, images/s of all',
            key('side_by_side', 'cuda'),
            dict(batch=parts.BATCH, device='cuda'),
            [side_by_side.name(n)],
            None,
        )
        for n in range(1, side_by_side.MOST + 1)
    ]
    return [*ratios, *rates, *together]


TARGETS: tuple[Target | Level, ...] = (
    Target(
        '1: SSD augmentation from file to tensor, mmdet / sb_mm',
        'augmentation',
        {},
        [pipeline.STOCK],
        [pipeline.OURS],
        3.0,
        at_least=True,
        floor=[pipeline.FLOOR],
    ),
    Level(
        "2: SSD augmentation, two-sample tests of mmdet's and sb_mm's "
        f'{distribution.DRAWS:,} draws, lowest p',
        'distribution',
        dict(draws=distribution.DRAWS),
        None,
        0.01,
    ),
    *_dynamic_conv(),
    Target(
        '3: DyConv pointwise, peak memory, sb_mm / grouped convolution',
        'dynamic_conv_memory',
        {},
        [dynamic_conv.OURS],
        [dynamic_conv.GROUPED],
        1.0,
    ),
    *_steps(),
    Target(
        '4b: training step for CIFAR-10 x0.35, batch 128, SB / static',
        'cifar_step',
        {},
        [networks.SB],
        [networks.STATIC],
        1.3,
    ),
    *_inference(),
    *(
        Target(
            f'6: peak memory of training, batch 32, x{width}, SB / static',
            'training_memory',
            dict(width=width),
            [networks.SB],
            [networks.STATIC],
            1.1,
        )
        for width in (0.35, 1.0)
    ),
    Target(
        '7: SSDLite x1.0 training step on a GPU, batch 32, compiled, '
        'SB / static',
        key('detector_step', 'cuda'),
        dict(device='cuda'),
        [networks.SB],
        [networks.STATIC],
        1.15,
    ),
    Level(
        '7: SSDLite SB x1.0, whole training loop on a GPU, batch 32, '
        f'{detector.LOADERS} dataloader workers, images/s',
        key('detector_loop', 'cuda'),
        dict(device='cuda', workers=detector.LOADERS),
        [networks.SB],
        None,
    ),
    *_cifar_pipeline(),
)


def table(results: dict[str, Result]) -> list[list[str]]:
    """Return the rows, with the columns of ``HEADER``."""
    return [target.row(results) for target in TARGETS]
