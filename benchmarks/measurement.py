"""Times and memory, taken so that two of them can be compared."""

import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import torch

WARM_UP = 2  # calls before the first round


@dataclass(frozen=True)
class Measurement:
    """What one contender took in one case.

    Attributes:
        case: What was measured, such as ``dict(width=0.35, batch=16)``.
        contender: Whose code or network it was.
        unit: Of the values.
        values: One a round. The contenders of a case take turns, so that the
            values of a round belong together whatever else the machine did.
    """

    case: dict
    contender: str
    unit: str
    values: list[float]


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often.

    Attributes:
        rounds: Values of each contender.
        tiny: Whether to measure next to nothing, to see that all of it runs.
        data_root: Folder of VOCdevkit.
        device: PyTorch's name of the device of what trains a detector.
        notes: Filled with what was left out, and why.
    """

    rounds: int = 9
    tiny: bool = False
    data_root: str = 'data/VOCdevkit'
    device: str = 'cpu'
    notes: list[str] = field(default_factory=list)


def take_turns(
    case: dict,
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    scale: float = 1e3,
    unit: str = 'ms',
) -> list[Measurement]:
    """Time the contenders of a case in turns.

    Args:
        case: See :class:`Measurement`.
        contenders: What to call, by name.
        rounds: Calls of each, after the first ones that do not count.
        scale: What the seconds of a call are multiplied by.
        unit: Of the result.
    """
    for call in contenders.values():
        for _ in range(WARM_UP):
            call()
    values = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            values[name].append(round(scale * _seconds(call), 4))
    return [Measurement(case, *item) for item in _units(values, unit)]


def _units(values: dict, unit: str) -> list[tuple]:
    return [(name, unit, each) for name, each in values.items()]


def _seconds(call: Callable[[], object]) -> float:
    _wait_for_device()
    start = time.perf_counter()
    call()
    _wait_for_device()
    return time.perf_counter() - start


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(prepare: Callable[..., Callable], *args) -> float:
    """Return the peak of resident memory that a call adds, in MiB.

    It runs in a process of its own.

    Args:
        prepare: A function of a module, that returns what to call; what it
            takes itself does not count.
        args: For it.
    """
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        threads = torch.get_num_threads()
        return pool.submit(_peak, threads, prepare, *args).result()


def _peak(threads: int, prepare: Callable[..., Callable], *args) -> float:
    torch.set_num_threads(threads)
    call = prepare(*args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round((after - before) / 1024, 1)  # Linux counts in KiB
