"""Times and memory, taken so that two of them can be compared."""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import torch

WARM_UP = 2  # calls before the first round
# A unit of which more is better, unlike times and memory.
RATE = 'images/s'


@dataclass(frozen=True)
class Measurement:
    """What one contender took in one case.

    Attributes:
        case: What was measured, such as ``dict(width=0.35, batch=16)``.
        contender: Whose code or network it was.
        unit: Of the values.
        values: One a round. The contenders of a case take turns, so that the
            values of a round belong together whatever else the machine did.
        threads: PyTorch's, a process; None in files of before it was noted.
    """

    case: dict
    contender: str
    unit: str
    values: list[float]
    threads: int | None = None


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


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often.

    Attributes:
        rounds: Values of each contender.
        tiny: Whether to measure next to nothing, to see that all of it runs.
        data_root: Folder of VOCdevkit.
        device: PyTorch's name of the device of what trains whole models.
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
    number: int = 1,
) -> list[Measurement]:
    """Time the contenders of a case in turns.

    Args:
        case: See :class:`Measurement`.
        contenders: What to call, by name.
        rounds: Values of each, after the first calls that do not count.
        scale: What the seconds of a call are multiplied by.
        unit: Of the result.
        number: Calls of a value, which is their mean.
    """
    seconds = _seconds_in_turns(contenders, rounds, number)
    return [
        _measurement(case, name, unit, [round(scale * s, 4) for s in each])
        for name, each in seconds.items()
    ]


def rates_in_turns(
    case: dict,
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    images: int | Mapping[str, int],
) -> list[Measurement]:
    """Count the images/s of the contenders of a case, in turns.

    Args:
        case: See :class:`Measurement`.
        contenders: What to call, by name.
        rounds: Values of each, after the first calls that do not count.
        images: That pass in a call, of all or by name.
    """
    seconds = _seconds_in_turns(contenders, rounds)
    if isinstance(images, int):
        images = dict.fromkeys(seconds, images)
    return [
        _measurement(
            case, name, RATE, [round(images[name] / s, 1) for s in each]
        )
        for name, each in seconds.items()
    ]


def memory_in_turns(
    case: dict, contenders: Mapping[str, tuple], rounds: int
) -> list[Measurement]:
    """Measure the peaks of memory of the contenders of a case, in turns.

    Args:
        case: See :class:`Measurement`.
        contenders: Arguments for :func:`peak_memory`, by name.
        rounds: Values of each.
    """
    values = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, arguments in contenders.items():
            values[name].append(peak_memory(*arguments))
    return [
        _measurement(case, name, 'MiB', each) for name, each in values.items()
    ]


def _measurement(
    case: dict, contender: str, unit: str, values: list[float]
) -> Measurement:
    return Measurement(case, contender, unit, values, torch.get_num_threads())


def _seconds_in_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    number: int = 1,
) -> dict[str, list[float]]:
    for call in contenders.values():
        for _ in range(WARM_UP):
            call()
    seconds = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            seconds[name].append(_seconds(contenders[name], number) / number)
        order.append(order.pop(0))  # whose turn is first finds cold caches
    return seconds


def _seconds(call: Callable[[], object], number: int) -> float:
    _wait_for_device()
    start = time.perf_counter()
    for _ in range(number):
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
    before = _resident('VmRSS')
    call()
    return round(_resident('VmHWM') - before, 1)


def _resident(name: str) -> float:
    """Return a line of Linux' account of this process, in MiB.

    ``getrusage`` would count what the process was forked from.
    """
    lines = Path('/proc/self/status').read_text().splitlines()
    entries = dict(line.split(':', 1) for line in lines)
    return int(entries[name].split()[0]) / 1024
