"""What the paper concludes from its tables, tested on our own runs."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from scipy import stats

from .cells import Cell, find_cell
from .records import Record, Summary

CONFIDENCE = 0.95
SUPPORTED = 'supported'
CONTRADICTED = 'contradicted'
OPEN = 'open'


@dataclass(frozen=True)
class Claim:
    """A conclusion of the paper.

    Attributes:
        text: In one line.
        source: Tables.
        pairs: Ids of two cells, the first of which is said to be better.
        margin: None for that; else the claim is that the two differ by no
            more than this, in percentage points.
    """

    text: str
    source: str
    pairs: tuple[tuple[str, str], ...]
    margin: float | None = None


@dataclass(frozen=True)
class Finding:
    """What results say of one pair of cells.

    Attributes:
        cells: The two; the first is said to be better.
        difference: Of the means, percentage points; None where there is none.
        interval: Its 95 % confidence interval after Welch; None for single
            runs.
        verdict: ``'supported'``, ``'contradicted'`` or ``'open'``.
        reason: Of a verdict that does not rest on the interval alone.
    """

    cells: tuple[Cell, Cell]
    difference: float | None
    interval: tuple[float, float] | None
    verdict: str
    reason: str


_Pairs = tuple[tuple[str, str], ...]


def _widths(better: str, worse: str, *widths: str) -> _Pairs:
    return tuple((better.format(w), worse.format(w)) for w in widths)


def _small_lambdas() -> _Pairs:
    values = product((0.01, 0.05, 0.1), (0.5, 1.0))
    return sum(
        (
            _widths(_LAMBDA + str(small), _LAMBDA + str(large), *_FOUR)
            for small, large in values
        ),
        (),
    )


_LAMBDA = 't8-x{}-lambda_init-'
_ALL = 'expand-depthwise-project'
_FOUR = ('0.35', '0.5', '0.75', '1.0')
CLAIMS = (
    Claim(
        'SB is better than the static network.',
        'Table 6',
        _widths('t6-x{}-sb', 't6-x{}-static', *_FOUR),
    ),
    Claim(
        'SB is better than DyConv.',
        'Table 6',
        _widths('t6-x{}-sb', 't6-x{}-dyconv', *_FOUR),
    ),
    Claim(
        'With attention in all three layers, SB is better than SE.',
        'Table 5',
        _widths('t5-x{}-sb-' + _ALL, 't5-x{}-se-' + _ALL, *_FOUR),
    ),
    Claim(
        'SE gets worse with each further layer of a block (it collapses).',
        'Table 5',
        _widths('t5-x{}-se-expand', 't5-x{}-se-expand-project', *_FOUR)
        + _widths('t5-x{}-se-expand-project', 't5-x{}-se-' + _ALL, *_FOUR),
    ),
    Claim(
        'SB in all three layers is better than SB in the first.',
        'Table 5',
        _widths('t5-x{}-sb-' + _ALL, 't5-x{}-sb-expand', *_FOUR),
    ),
    Claim(
        'Dropout in the gate helps.',
        'Table 7',
        (
            ('t7-se-w-dropout', 't7-se-w-o-dropout'),
            ('t7-sb-w-dropout', 't7-sb-w-o-dropout'),
        ),
    ),
    Claim(
        'A small initial lambda (up to 0.1) is better than a large one (0.5 '
        'and more).',
        'Table 8',
        _small_lambdas(),
    ),
    Claim(
        'The gating function hardly matters: at most 0.5 points from tanh.',
        'Table 9',
        tuple(
            (f't9-x{width}-gate-{gate}', f't9-x{width}-gate-tanh')
            for gate in ('sigmoid', 'softmax', 'relu', 'none')
            for width in _FOUR
        ),
        margin=0.5,
    ),
    Claim(
        'Three times the hidden units are best.',
        'Table 10',
        tuple(
            ('t10-x0.35-hidden-x3', f't10-x0.35-hidden-x{n}')
            for n in (1, 2, 4)
        ),
    ),
)


@dataclass(frozen=True)
class Sample:
    """Results of runs of one cell.

    Attributes:
        mean: Percent; None if all failed to train.
        std: Sample standard deviation; None for a single run.
        runs: How many did not fail.
        failed: How many did.
    """

    mean: float | None
    std: float | None
    runs: int
    failed: int = 0


# Returns what is known of a cell, or None.
Samples = Callable[[Cell], Sample | None]


def of_runs(records: Sequence[Record]) -> Samples:
    """Return where to look up the results of runs of one recipe."""

    def sample(cell: Cell) -> Sample | None:
        same = [r for r in records if r.experiment == cell.experiment]
        if not same:
            return None
        return sample_of(Summary(same))

    return sample


def sample_of(runs: Summary) -> Sample:
    """Return what is tested of a cell's runs."""
    return Sample(runs.mean, runs.std, len(runs.finals), runs.diverged)


def of_paper(cell: Cell) -> Sample:
    """Return what the paper prints for a cell."""
    return Sample(
        cell.printed[cell.metric],
        cell.printed.get('std'),
        cell.printed.get('runs', 1),
    )


def difference(
    first: Sample, second: Sample
) -> tuple[float | None, tuple[float, float] | None]:
    """Return the difference of two means, and its confidence interval.

    Returns:
        Percentage points, None where a mean is missing; Welch's interval at
        the level ``CONFIDENCE``, None also where a run is single.
    """
    if first.mean is None or second.mean is None:
        return None, None
    return first.mean - second.mean, _interval(first, second, CONFIDENCE)


def direction(changed: Sample, unchanged: Sample) -> str:
    """Return whether a changed network is better or worse, or that is open."""
    if failed := changed.failed + unchanged.failed:
        return f'open ({failed} runs failed to train)'
    _, interval = difference(changed, unchanged)
    if interval is None:
        return 'open (a single run is no test)'
    if interval[0] <= 0 <= interval[1]:
        return OPEN
    return 'better' if interval[0] > 0 else 'worse'


def judge(claim: Claim, samples: Samples) -> Iterator[Finding]:
    """Yield what results say of a claim, pair by pair.

    A claim needs the support of all its pairs, so that each may be tested at
    the level of the whole. One pair contradicts it, so that the level of
    that is divided by their number (Bonferroni).

    Args:
        claim: To be judged.
        samples: Such as :func:`of_runs`, :func:`of_paper`.
    """
    for ids in claim.pairs:
        cells = tuple(map(find_cell, ids))
        first, second = map(samples, cells)
        if first is None or second is None:
            yield Finding(cells, None, None, OPEN, 'not run')
            continue
        verdict, reason = _verdict(first, second, claim)
        yield Finding(cells, *difference(first, second), verdict, reason)


def _interval(
    a: Sample, b: Sample, confidence: float
) -> tuple[float, float] | None:
    """Return Welch's confidence interval of the difference of two means."""
    if a.std is None or b.std is None:
        return None
    parts = [s.std**2 / s.runs for s in (a, b)]
    error, middle = math.sqrt(sum(parts)), a.mean - b.mean
    if not error:
        return middle, middle
    freedom = sum(parts) ** 2 / sum(
        part**2 / (s.runs - 1) for part, s in zip(parts, (a, b), strict=True)
    )
    reach = error * stats.t.ppf((1 + confidence) / 2, freedom)
    return middle - reach, middle + reach


def _verdict(first: Sample, second: Sample, claim: Claim) -> tuple[str, str]:
    if first.mean is None and second.mean is None:
        return OPEN, 'no run of either trained'
    if first.mean is None or second.mean is None:
        return _verdict_of_failures(first, second, claim.margin)
    if first.failed or second.failed:
        return OPEN, f'{first.failed + second.failed} runs failed to train'
    interval = _interval(first, second, CONFIDENCE)
    if interval is None:
        return OPEN, 'a single run is no test'
    margin = claim.margin
    least, most = (0.0, math.inf) if margin is None else (-margin, margin)
    if least <= interval[0] and interval[1] <= most:
        return SUPPORTED, ''
    if interval[1] >= least and interval[0] <= most:
        return OPEN, 'the interval holds both'
    count = len(claim.pairs)
    low, high = _interval(first, second, 1 - (1 - CONFIDENCE) / count)
    if high < least or low > most:
        return CONTRADICTED, ''
    return OPEN, f'not clear enough for one of {count} pairs'


def _verdict_of_failures(
    first: Sample, second: Sample, margin: float | None
) -> tuple[str, str]:
    """Judge where all runs of one side failed to train."""
    which = 'first' if first.mean is None else 'second'
    reason = f'no run of the {which} trained'
    if min(s.runs + s.failed for s in (first, second)) < 2 or (
        (first if second.mean is None else second).failed
    ):
        return OPEN, f'{reason}, which is no test yet'
    better = second.mean is None and margin is None
    return (SUPPORTED if better else CONTRADICTED), reason


def combined(findings: Sequence[Finding]) -> str:
    """Return the verdict on a claim from those on its pairs.

    Contradicted by any pair; supported if at least one pair supports it and
    none is open.
    """
    verdicts = {f.verdict for f in findings}
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    return SUPPORTED if verdicts == {SUPPORTED} else OPEN
