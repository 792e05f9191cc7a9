"""Times and memory of several calls that take turns, and their ratios."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer  # waits for the device

WARM_UP = 3  # calls before the first round
Calls = Mapping[str, Callable[[], object]]
Rows = Iterator[dict]


@dataclass(frozen=True)
class Settings:
    """How often and where things are measured; ``tiny``: next to nothing."""

    rounds: int = 9
    tiny: bool = False
    device: str = 'cpu'
    data_root: str = 'data/VOCdevkit'

    @property
    def on_gpu(self) -> bool:
        """Whether the networks are on a GPU."""
        return self.device != 'cpu'


class Pair(NamedTuple):
    """Which two calls are compared; ``target``: a ratio of at most that."""

    ours: str
    other: str
    target: float | None = None


def compare(
    what: str,
    unit: str,
    values: Mapping[str, Sequence[float]],
    pairs: Sequence[Pair],
) -> Rows:
    """Yield a row for each pair whose two calls have values, one a round.

    Its ``ratio`` is the first quartile, median and third quartile of
    ``ours / other`` of each round: those of a round belong together whatever
    else the machine did.
    """
    for ours, other, target in pairs:
        if ours not in values or other not in values:
            continue
        ratios = np.divide(values[ours], values[other])
        yield dict(
            what=what,
            unit=unit,
            ours=ours,
            other=other,
            ours_median=_rounded(np.median(values[ours])),
            other_median=_rounded(np.median(values[other])),
            ratio=[*map(_rounded, np.quantile(ratios, (0.25, 0.5, 0.75)))],
            target=target,
            rounds=len(ratios),
            threads=torch.get_num_threads(),
        )


def _rounded(value: float) -> float:
    return float(f'{value:.4g}')


def in_turns(
    what: str,
    calls: Calls,
    pairs: Sequence[Pair],
    settings: Settings,
    repeats: int = 1,
    images: int = 0,
) -> Rows:
    """Time calls that take turns, round by round.

    A value is of ``repeats`` calls in a row; where ``images`` pass in a call,
    of one of them.
    """
    for call in calls.values():
        _seconds(call, WARM_UP)
    values = {name: [] for name in calls}
    order = list(calls)
    scale = 1e3 / repeats / (images or 1)
    for _ in range(settings.rounds):
        for name in order:
            values[name].append(scale * _seconds(calls[name], repeats))
        order.append(order.pop(0))  # whose turn is first finds cold caches
    return compare(what, 'ms per image' if images else 'ms', values, pairs)


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = timer()
    for _ in range(repeats):
        call()
    return timer() - start


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


def kernels(call: Callable[[], object]) -> tuple[int, float]:
    """Return how many kernels a call launches on a GPU, and their ms."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as found:
        call()
        torch.cuda.synchronize()
    busy = [a for a in found.key_averages() if a.self_device_time_total]
    total = sum(a.self_device_time_total for a in busy)
    return sum(a.count for a in busy), total / 1e3


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
