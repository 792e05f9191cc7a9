"""What the paper concludes from its tables, tested on trainings."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import stats

from .cells import Cell, find_cell, paper_tables

CONFIDENCE = 0.95
SEEDS = 3  # at least, on each side of a test
SUPPORTED, CONTRADICTED, OPEN = 'supported', 'contradicted', 'open'
_WIDTHS = (0.35, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Claim:
    """A conclusion of the paper.

    Attributes:
        text: In one line.
        table: From which the paper concludes it.
        pairs: Of cells, the first of which is said to be better.
        margin: None for that; else the claim is that the two differ by no
            more than this, in percentage points.
    """

    text: str
    table: int
    pairs: tuple[tuple[Cell, Cell], ...]
    margin: float | None = None


def load_claims() -> list[Claim]:
    """Return the claims; a pair with a width in its ids is one for each."""
    return [
        Claim(
            row['text'],
            row['table'],
            tuple(
                (find_cell(better), find_cell(worse))
                for pair in row['pairs']
                for better, worse in _at_all_widths(*pair)
            ),
            row.get('margin'),
        )
        for row in paper_tables()['claims']
    ]


def _at_all_widths(better: str, worse: str) -> list[tuple[str, str]]:
    found = ((n.format(width=w) for n in (better, worse)) for w in _WIDTHS)
    return list(dict.fromkeys(map(tuple, found)))


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
    first: Sequence[float],
    second: Sequence[float],
    margin: float | None = None,
) -> str:
    """Return what the results of two cells say of a claim."""
    if min(len(first), len(second)) < SEEDS:
        return OPEN
    low, high = welch(first, second)
    least, most = (0.0, math.inf) if margin is None else (-margin, margin)
    if least <= low and high <= most:
        return SUPPORTED
    return CONTRADICTED if high < least or low > most else OPEN
