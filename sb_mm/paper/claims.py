"""What the paper concludes from its tables, tested on trainings."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from scipy import stats

from .cells import Cell

CONFIDENCE = 0.95
SEEDS = 3  # at least, on each side of a test
SUPPORTED, CONTRADICTED, OPEN = 'supported', 'contradicted', 'open'
_WIDTHS = ('0.35', '0.5', '0.75', '1.0')
_ALL = 'expand-depthwise-project'


@dataclass(frozen=True)
class Claim:
    """A conclusion of the paper.

    Attributes:
        text: In one line.
        table: From which the paper concludes it.
        pairs: Ids of two cells, the first of which is said to be better.
        margin: None for that; else the claim is that the two differ by no
            more than this, in percentage points.
    """

    text: str
    table: int
    pairs: tuple[tuple[str, str], ...]
    margin: float | None = None


def _widths(better: str, worse: str) -> tuple[tuple[str, str], ...]:
    return tuple((better.format(w), worse.format(w)) for w in _WIDTHS)


CLAIMS = (
    Claim(
        'SB is better than the static network.',
        6,
        _widths('t6-x{}-sb', 't6-x{}-static'),
    ),
    Claim(
        'SB is better than DyConv.', 6, _widths('t6-x{}-sb', 't6-x{}-dyconv')
    ),
    Claim(
        'With attention in all three layers, SB is better than SE.',
        5,
        _widths(f't5-x{{}}-sb-{_ALL}', f't5-x{{}}-se-{_ALL}'),
    ),
    Claim(
        'SE gets worse with each further layer of a block (it collapses).',
        5,
        _widths('t5-x{}-se-expand', 't5-x{}-se-expand-project')
        + _widths('t5-x{}-se-expand-project', f't5-x{{}}-se-{_ALL}'),
    ),
    Claim(
        'SB in all three layers is better than SB in the first.',
        5,
        _widths(f't5-x{{}}-sb-{_ALL}', 't5-x{}-sb-expand'),
    ),
    Claim(
        'Dropout in the gate helps.',
        7,
        (
            ('t7-se-w-dropout', 't7-se-w-o-dropout'),
            ('t7-sb-w-dropout', 't7-sb-w-o-dropout'),
        ),
    ),
    Claim(
        'A small initial lambda (up to 0.1) is better than a large one (0.5 '
        'and more).',
        8,
        tuple(
            (f't8-x{w}-lambda_init-{low}', f't8-x{w}-lambda_init-{high}')
            for low, high, w in product((0.01, 0.05, 0.1), (0.5, 1.0), _WIDTHS)
        ),
    ),
    Claim(
        'The gating function hardly matters: at most 0.5 points from tanh.',
        9,
        tuple(
            (f't9-x{width}-gate-{gate}', f't9-x{width}-gate-tanh')
            for gate in ('sigmoid', 'softmax', 'relu', 'none')
            for width in _WIDTHS
        ),
        margin=0.5,
    ),
    Claim(
        'Three times the hidden units are best.',
        10,
        tuple(
            ('t10-x0.35-hidden-x3', f't10-x0.35-hidden-x{n}')
            for n in (1, 2, 4)
        ),
    ),
)

# Returns the results of a cell's trainings in percent, if none of them failed.
Samples = Callable[[Cell], Sequence[float]]


def printed_samples(cell: Cell) -> Sequence[float]:
    """Return five results with the mean and deviation that the paper prints.

    The interval depends on nothing else.
    """
    mean, std = cell.result, cell.printed.get('std')
    if std is None:
        return []
    return [mean, mean - std, mean - std, mean + std, mean + std]


def welch(
    first: Sequence[float], second: Sequence[float]
) -> tuple[float, float]:
    """Return the confidence interval of the difference of two means.

    NaN for samples of a single result, or without any deviation.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        test = stats.ttest_ind(first, second, equal_var=False)
        return tuple(map(float, test.confidence_interval(CONFIDENCE)))


def verdict(
    first: Sequence[float], second: Sequence[float], margin: float | None
) -> str:
    """Return what the results of two cells say of a claim."""
    if min(len(first), len(second)) < SEEDS:
        return OPEN
    low, high = welch(first, second)
    least, most = (0.0, math.inf) if margin is None else (-margin, margin)
    if least <= low and high <= most:
        return SUPPORTED
    return CONTRADICTED if high < least or low > most else OPEN
