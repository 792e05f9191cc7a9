"""Times and memory of several calls that take turns, and their ratios."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer  # waits for the device

WARM_UP = 3  # calls before the first round
TURN = 0.2  # seconds
Calls = Mapping[str, Callable[[], object]]
Rows = Iterator[dict]


@dataclass(frozen=True)
class Settings:
    """How often and where things are measured; ``tiny``: next to nothing."""

    rounds: int
    tiny: bool
    device: str
    data_root: str

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

    Its ``ratio`` is the quartiles of the rounds' ratios: values of a round
    belong together, whatever else the machine did.
    """
    for ours, other, target in pairs:
        if not {ours, other} <= {*values}:
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
    images: int = 0,
) -> Rows:
    """Time calls that take turns, round by round.

    A value is of as many calls in a row as fill ``TURN``; where ``images``
    pass in a call, of one of them.
    """
    for call in calls.values():
        _seconds(call, WARM_UP)
    slowest = max(_seconds(call, 1) for call in calls.values())
    repeats = 1 + int(TURN / slowest)
    values = {name: [] for name in calls}
    order = list(calls)
    for _ in range(settings.rounds):
        for name in order:
            seconds = _seconds(calls[name], repeats) / repeats
            values[name].append(1e3 * seconds / (images or 1))
        order.append(order.pop(0))  # whose turn is first finds cold caches
    return compare(what, 'ms per image' if images else 'ms', values, pairs)


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = timer()
    for _ in range(repeats):
        call()
    return timer() - start


def memory(
    what: str, calls: Calls, pairs: Sequence[Pair], settings: Settings
) -> Rows:
    """Compare the most memory that tensors take at a time, in every run."""
    measure = _peak_on_gpu if settings.on_gpu else _peak_on_cpu
    peaks = {name: [measure(call) / 2**20] for name, call in calls.items()}
    return compare(f'memory of {what}', 'MiB', peaks, pairs)


def _peak_on_gpu(call: Callable[[], object]) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(call: Callable[[], object]) -> int:
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    events = [e for e in events if e.name() == '[memory]']
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(np.cumsum(changes))


def kernels(what: str, calls: Calls, pairs: Sequence[Pair]) -> Rows:
    """Compare the kernels that the calls launch on a GPU, and their time."""
    counts, times = {}, {}
    for name, call in calls.items():
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as p:
            call()
            torch.cuda.synchronize()
        busy = [a for a in p.key_averages() if a.self_device_time_total]
        counts[name] = [sum(a.count for a in busy)]
        times[name] = [sum(a.self_device_time_total for a in busy) / 1e3]
    yield from compare(f'kernels of {what}', 'kernels', counts, pairs)
    yield from compare(f'kernels of {what}, time', 'ms', times, pairs)
