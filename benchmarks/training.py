"""A training step of the backbones: its time, memory and device calls."""

from collections.abc import Callable, Iterator

import torch
import torch._dynamo
from torch import nn
from torch._inductor import metrics
from torch.utils._python_dispatch import TorchDispatchMode

from .measure import Pair, Row, Settings, compare, in_turns, peak_memory
from .networks import (
    DYCONV,
    OTHERS,
    SB,
    SE,
    STATIC,
    build,
    build_other,
    last_features,
)

# Allocations, and questions about types: nothing runs on a device.
_NO_CALLS = 'empty', 'empty_like', 'empty_strided', 'promote_types'


def training_step(settings: Settings) -> Iterator[Row]:
    """Time steps of MobileNetV2 at ImageNet's size, in two layouts."""
    batch, size = (2, 64) if settings.tiny else (32, 224)
    pairs = [
        Pair(SB, STATIC, 1.15),
        Pair(SE, STATIC),
        Pair(SB, SE, 1),
        *(Pair(STATIC, name) for name in OTHERS),
    ]
    for width in (0.35,) if settings.tiny else (0.35, 1.0):
        for layout in ('NCHW', 'channels_last'):
            networks = {k: build(k, width) for k in (STATIC, SE, SB)}
            networks |= {n: build_other(n, width) for n in OTHERS}
            steps = {
                name: step(network, batch, size, settings.device, layout)
                for name, network in networks.items()
            }
            what = f'training step x{width}, batch {batch}, {layout}'
            yield from in_turns(what, steps, pairs, settings)


def cifar_step(settings: Settings) -> Iterator[Row]:
    """Time steps of the networks for CIFAR-10."""
    batch = 8 if settings.tiny else 128
    steps = {
        kind: step(build(kind, 0.35, True), batch, 32, settings.device)
        for kind in (STATIC, SE, SB, DYCONV)
    }
    pairs = [
        Pair(SB, STATIC, 1.3 if settings.device == 'cpu' else 2),
        Pair(SB, SE, 1),
        Pair(SB, DYCONV),
    ]
    what = f'training step for CIFAR-10 x0.35, batch {batch}'
    yield from in_turns(what, steps, pairs, settings)


def training_memory(settings: Settings) -> Iterator[Row]:
    """Measure the most memory that a step takes, with fresh gradients."""
    batch, size = (2, 64) if settings.tiny else (32, 224)
    for width in (0.35,) if settings.tiny else (0.35, 1.0):
        peaks = {}
        for kind in (STATIC, SE, SB):
            once = step(build(kind, width), batch, size, settings.device)
            peaks[kind] = [peak_memory(once, settings.device)]
        what = f'memory of a training step x{width}, batch {batch}'
        pairs = [Pair(SB, STATIC, 1.1), Pair(SB, SE, 1)]
        yield from compare(what, 'MiB', peaks, pairs)


def device_calls(settings: Settings) -> Iterator[Row]:
    """Count the calls of forward and backward of the CIFAR-10 network.

    They are the same on every machine, and what a step costs where the GPU
    waits for them.
    """
    calls = {
        kind: [count_calls(build(kind, 0.35, cifar=True))]
        for kind in (STATIC, SE, SB, DYCONV)
    }
    pairs = [Pair(SB, STATIC, 3.9), Pair(SE, STATIC, 3.9)]
    pairs.append(Pair(DYCONV, STATIC))
    yield from compare('device calls, eager', 'calls', calls, pairs)


def compiled_kernels(settings: Settings) -> Iterator[Row]:
    """Count the kernels that ``torch.compile`` makes of the same networks."""
    kernels = {
        kind: [_count_kernels(build(kind, 0.35, True), settings.device)]
        for kind in (STATIC, SE, SB)
    }
    pairs = [Pair(SB, STATIC), Pair(SE, STATIC)]
    yield from compare('kernels, compiled', 'kernels', kernels, pairs)


class CallCounter(TorchDispatchMode):
    """Counts the ATen calls that make a device work: no views."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        name = func.overloadpacket.__name__
        self.calls += not func.is_view and name not in _NO_CALLS
        return func(*args, **kwargs or {})


def count_calls(network: nn.Module) -> int:
    """Count the device calls of forward and backward, gradients fresh."""
    images = torch.randn(8, 3, 32, 32)
    with CallCounter() as counter:
        last_features(network.train()(images)).sum().backward()
    return counter.calls


def _count_kernels(network: nn.Module, device: str) -> int:
    torch._dynamo.reset()
    metrics.reset()
    network = torch.compile(network.to(device).train(), dynamic=False)
    images = torch.randn(8, 3, 32, 32, device=device)
    last_features(network(images)).sum().backward()
    return metrics.generated_kernel_count


def step(
    network: nn.Module,
    batch: int,
    size: int,
    device: str,
    layout: str = 'NCHW',
) -> Callable[[], None]:
    """Return what takes one training step, with SGD as in our configs."""
    images = torch.randn(batch, 3, size, size, device=device)
    network = network.to(device)
    network.train()  # of mmpretrain's, it returns nothing
    if layout == 'channels_last':
        images = images.to(memory_format=torch.channels_last)
        network = network.to(memory_format=torch.channels_last)
    # The rate of 0 keeps the weights, so that every step is the same work.
    optimizer = torch.optim.SGD(network.parameters(), lr=0, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        features = last_features(network(images))
        features.mean((2, 3)).square().mean().backward()
        optimizer.step()

    return run
