"""Times and memory of several calls that take turns, and their ratios."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer  # waits for the device

WARM_UP = 2  # calls before the first round


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often.

    Attributes:
        rounds: Values of each call.
        tiny: Whether to measure next to nothing, to see that all of it runs.
        device: PyTorch's name of the device of the networks.
        data_root: Folder of VOCdevkit.
        cpu_time: Whether to count this process's time on the CPU instead of
            the time that passes, where others use the machine.
    """

    rounds: int = 9
    tiny: bool = False
    device: str = 'cpu'
    data_root: str = 'data/VOCdevkit'
    cpu_time: bool = False


class Pair(NamedTuple):
    """Which two calls are compared; ``target``: a ratio of at most that."""

    ours: str
    other: str
    target: float | None = None


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: Was measured.
        unit: Of the two medians.
        ours: Name of the call that is judged.
        other: Name of the call beside it.
        ours_median: Of the values of ``ours``.
        other_median: Of the values of ``other``.
        ratio: ``ours / other`` of each round: first quartile, median, third.
        target: What the ratio is to be at most.
        rounds: How many.
        threads: PyTorch's.
    """

    what: str
    unit: str
    ours: str
    other: str
    ours_median: float
    other_median: float
    ratio: tuple[float, float, float]
    target: float | None
    rounds: int
    threads: int


def compare(
    what: str,
    unit: str,
    values: Mapping[str, Sequence[float]],
    pairs: Sequence[Pair],
) -> Iterator[Row]:
    """Yield a row for each pair whose two calls have values.

    Args:
        what: See :class:`Row`.
        unit: See :class:`Row`.
        values: Of each call, one a round. Those of a round belong together
            whatever else the machine did.
        pairs: What is compared.
    """
    for ours, other, target in pairs:
        ratios = np.divide(values[ours], values[other])
        yield Row(
            what=what,
            unit=unit,
            ours=ours,
            other=other,
            ours_median=_rounded(np.median(values[ours])),
            other_median=_rounded(np.median(values[other])),
            ratio=tuple(map(_rounded, np.quantile(ratios, (0.25, 0.5, 0.75)))),
            target=target,
            rounds=len(ratios),
            threads=torch.get_num_threads(),
        )


def _rounded(value: float) -> float:
    return float(f'{value:.4g}')


def in_turns(
    what: str,
    calls: Mapping[str, Callable[[], object]],
    pairs: Sequence[Pair],
    settings: Settings,
    repeats: int = 1,
    images: int = 0,
) -> Iterator[Row]:
    """Time calls that take turns, round by round.

    Args:
        what: See :class:`Row`.
        calls: By name.
        pairs: What is compared.
        settings: How often.
        repeats: Times that a call is made for one value.
        images: That pass in a call, if the time of one is meant.
    """
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    values = {name: [] for name in calls}
    order = list(calls)
    scale = 1e3 / repeats / (images or 1)
    clock = time.process_time if settings.cpu_time else timer
    for _ in range(settings.rounds):
        for name in order:
            values[name].append(scale * _seconds(calls[name], repeats, clock))
        order.append(order.pop(0))  # whose turn is first finds cold caches
    unit = 'CPU ms' if settings.cpu_time else 'ms'
    unit = f'{unit} per image' if images else unit
    return compare(what, unit, values, pairs)


def _seconds(
    call: Callable[[], object], repeats: int, clock: Callable[[], float]
) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return clock() - start


def peak_memory(call: Callable[[], object], device: str) -> float:
    """Return the most memory that a call's tensors take at a time, in MiB.

    It is the same in every run. What oneDNN allocates by itself on a CPU does
    not count.
    """
    if device != 'cpu':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    events = [e for e in events if e.name() == '[memory]']
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(np.cumsum(changes)) / 2**20


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, as one of many processes does."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
