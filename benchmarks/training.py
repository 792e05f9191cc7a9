"""A training step: its time, memory and device calls."""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import mmdet.models  # noqa: F401  fills the registry
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .inputs import CONFIGS, use_random_images
from .measure import (
    Calls,
    Pair,
    Rows,
    Settings,
    compare,
    in_turns,
    kernels,
    peak_memory,
    timer,
)
from .networks import (
    DYCONV,
    FUSED_SB,
    FUSED_SE,
    KINDS,
    SB,
    SE,
    STATIC,
    build,
    trained_on,
)

NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
# Allocations: nothing runs on a device.
_NO_CALLS = 'empty', 'empty_like', 'empty_strided'
Form = Callable[[nn.Module, Tensor], object]


def eager(network: nn.Module, images: Tensor) -> None:
    """Leave a network as it is."""


def compiled(network: nn.Module, images: Tensor) -> None:
    """Let inductor compile a network, in place."""
    network.compile(dynamic=False)


def graphs(network: nn.Module, images: Tensor) -> None:
    """Let CUDA graphs replay forward and backward, in place."""
    torch.cuda.make_graphed_callables(
        network, (images,), allow_unused_input=True
    )


def training_step(settings: Settings) -> Rows:
    """Time steps of MobileNetV2 at ImageNet's size, in two layouts."""
    batch, size = (2, 64) if settings.tiny else (32, 224)
    images = torch.randn(batch, 3, size, size, device=settings.device)
    pairs = [Pair(SB, STATIC, 1.15), Pair(SE, STATIC), Pair(SB, SE, 1)]
    for width in (0.35,) if settings.tiny else (0.35, 1.0):
        for layout in (NCHW, CHANNELS_LAST):
            steps = {
                kind: step(build(kind, width), images, layout)
                for kind in (STATIC, SE, SB)
            }
            what = f'training step x{width}, batch {batch}, {layout}'
            yield from in_turns(what, steps, pairs, settings)


def cifar_step(
    settings: Settings, form: Form = eager, layout: torch.memory_format = NCHW
) -> Rows:
    """Time steps of the networks for CIFAR-10."""
    batch = 8 if settings.tiny else 128
    images = torch.randn(batch, 3, 32, 32, device=settings.device)
    kinds = trained_on(settings, se=form is not compiled)
    kinds += [DYCONV] if form is eager else []
    steps = _working(
        lambda kind: step(build(kind, 0.35, True), images, layout, form), kinds
    )
    what = f'training step for CIFAR-10 x0.35, batch {batch}, {form.__name__}'
    what += ', channels_last' if layout is CHANNELS_LAST else ''
    most = 2 if settings.on_gpu else 1.3
    yield from _step_rows(what, steps, most, settings, repeats=5)


def detector_step(
    settings: Settings, form: Form = eager, amp: bool = False
) -> Rows:
    """Time steps of SSDLite x1.0, with target assignment and losses."""
    batch = 2 if settings.tiny else 32
    steps = _working(
        lambda kind: _detector_step(kind, batch, settings.device, form, amp),
        trained_on(settings, se=form is not compiled),
    )
    what = f'training step of SSDLite x1.0, batch {batch}, {form.__name__}'
    what += ', bfloat16' if amp else ''
    yield from _step_rows(what, steps, 1.25, settings, repeats=2)


# These need a GPU, or minutes for a compiler.
cifar_channels_last = partial(cifar_step, layout=CHANNELS_LAST)
cifar_graphs = partial(cifar_step, form=graphs)
cifar_compiled = partial(cifar_step, form=compiled)
detector_bfloat16 = partial(detector_step, amp=True)
detector_graphs = partial(detector_step, form=graphs)
detector_compiled = partial(detector_step, form=compiled)


def _working(make: Callable, kinds: Sequence[str]) -> Calls:
    """Return the kinds' steps; say why one does not work, and go on."""
    steps = {}
    for kind in kinds:
        try:
            call = make(kind)
            call()
            steps[kind] = call
        except Exception as error:  # of CUDA, Triton or a compiler
            print(f'{kind} does not work: {error}')
    return steps


def _step_rows(
    what: str, steps: Calls, most: float, settings: Settings, repeats: int
) -> Rows:
    """Yield times; on a GPU memory, kernels and their time as well."""
    kinds = (SB, FUSED_SB, SE, FUSED_SE)
    pairs = [Pair(kind, STATIC, most) for kind in kinds]
    pairs += [Pair(SB, SE, 1), Pair(FUSED_SB, SB, 1), Pair(SB, DYCONV)]
    repeats = repeats if settings.on_gpu else 1
    yield from in_turns(what, steps, pairs, settings, repeats)
    if not settings.on_gpu:
        return
    pairs = [pair._replace(target=None) for pair in pairs]
    peaks = {k: [peak_memory(s, settings.device)] for k, s in steps.items()}
    yield from compare(f'memory of a {what}', 'MiB', peaks, pairs)
    found = {kind: kernels(step) for kind, step in steps.items()}
    counts = {kind: [count] for kind, (count, _) in found.items()}
    yield from compare(f'kernels of a {what}', 'kernels', counts, pairs)
    times = {kind: [time] for kind, (_, time) in found.items()}
    yield from compare(f'kernels of a {what}, time', 'ms', times, pairs)


def step(
    network: nn.Module,
    images: Tensor,
    layout: torch.memory_format = NCHW,
    form: Form = eager,
) -> Callable[[], None]:
    """Return what takes one training step, with SGD as in our configs."""
    images = images.to(memory_format=layout)
    network = network.to(images.device, memory_format=layout).train()
    form(network, images)
    # The rate of 0 keeps the weights, so that every step is the same work.
    optimizer = torch.optim.SGD(network.parameters(), lr=0, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        features = network(images)[-1]
        features.mean((2, 3)).square().mean().backward()
        optimizer.step()

    return run


def _detector_step(
    kind: str, batch: int, device: str, form: Form, amp: bool
) -> Callable[[], dict]:
    torch.manual_seed(0)
    config = Config.fromfile(CONFIGS / 'ssd_sb_voc.py').model
    config.backbone.update(type='sb_mm.AttentionMobileNetV2', **KINDS[kind])
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config).to(device).train()
    size = (3, 300, 300)
    form(model.backbone, torch.rand(batch, *size, device=device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0, momentum=0.9)
    wrapper = OptimWrapper(optimizer)
    if amp:
        wrapper = AmpOptimWrapper(dtype='bfloat16', optimizer=optimizer)
    # VOC has 2.4 objects an image.
    data = demo_mm_inputs(batch, size, [3] * batch, 20, device=device)
    return partial(model.train_step, data, wrapper)


class _EpochTimes(Hook):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def before_train_epoch(self, runner: Runner) -> None:
        self.begin = timer()

    def after_train_epoch(self, runner: Runner) -> None:
        self.seconds.append(timer() - self.begin)


def training_loop(settings: Settings) -> Rows:
    """Time epochs of CIFAR-10 x0.35, from the loader to the optimizer."""
    images = 16 if settings.tiny else 6400 if settings.on_gpu else 1280
    values = {
        kind: [1e3 * seconds / images for seconds in _epochs(kind, images)]
        for kind in trained_on(settings, se=False)
    }
    pairs = [Pair(SB, STATIC), Pair(FUSED_SB, STATIC)]
    what = f'training loop for CIFAR-10 x0.35, {images} images'
    yield from compare(what, 'ms per image', values, pairs)


def _epochs(kind: str, images: int) -> list[float]:
    """Return the seconds of epochs, a first one left out."""
    cfg = Config.fromfile(
        CONFIGS / 'cifar10/mobilenetv2-sb-w0.35_on-device.py'
    )
    cfg.model.backbone.pop('attention')
    cfg.model.backbone.update(KINDS[kind])
    cfg.optim_wrapper.optimizer.fused = True  # as paper.py sets it
    use_random_images(cfg, images)
    for part in ('dataloader', 'evaluator', 'cfg'):
        cfg[f'val_{part}'] = cfg[f'test_{part}'] = None
    cfg.default_hooks = ConfigDict(checkpoint=None, logger=None)
    cfg.visualizer, cfg.log_level = None, 'ERROR'
    cfg.train_cfg.max_epochs = 4
    times = _EpochTimes()
    with tempfile.TemporaryDirectory() as cfg.work_dir:
        runner = Runner.from_cfg(cfg)
        runner.register_hook(times)
        runner.train()
    return times.seconds[1:]


def training_memory(settings: Settings) -> Rows:
    """Measure the most memory that a step takes, with fresh gradients."""
    batch, size = (2, 64) if settings.tiny else (32, 224)
    images = torch.randn(batch, 3, size, size, device=settings.device)
    pairs = [Pair(SB, STATIC, 1.1), Pair(SB, SE, 1)]
    for width in (0.35,) if settings.tiny else (0.35, 1.0):
        peaks = {}
        for kind in (STATIC, SE, SB):
            once = step(build(kind, width), images)
            peaks[kind] = [peak_memory(once, settings.device)]
        what = f'memory of a training step x{width}, batch {batch}'
        yield from compare(what, 'MiB', peaks, pairs)


def device_calls(settings: Settings) -> Rows:
    """Count the calls of forward and backward of the CIFAR-10 network.

    They are the same on every machine, and what a step costs where the GPU
    waits for them.
    """
    calls = {kind: [count_calls(build(kind, 0.35, True))] for kind in KINDS}
    pairs = [Pair(SB, STATIC, 3.9), Pair(SE, STATIC, 3.9)]
    pairs += [Pair(FUSED_SB, STATIC, 2.4), Pair(FUSED_SE, STATIC, 2.4)]
    pairs.append(Pair(DYCONV, STATIC))
    yield from compare('device calls, eager', 'calls', calls, pairs)


def compiled_kernels(settings: Settings) -> Rows:
    """Count the kernels that ``torch.compile`` makes of the same networks."""
    kernels = {
        kind: [_count_kernels(build(kind, 0.35, True))]
        for kind in KINDS
        if kind != DYCONV
    }
    pairs = [Pair(SB, STATIC), Pair(SE, STATIC)]
    pairs += [Pair(FUSED_SB, STATIC, 2), Pair(FUSED_SE, STATIC, 2)]
    yield from compare('kernels, compiled', 'kernels', kernels, pairs)


@contextmanager
def _pretending() -> Iterator[list]:
    """Let fused gates launch nothing on a CPU; list how often."""
    from sb_mm.models.layers import fused_gate, launch

    launches = []
    # Indexed by a grid, each gives what takes arguments.
    nothing = defaultdict(lambda: lambda *_, **__: launches.append(1))
    kernels = {k: (nothing, plan) for k, (_, plan) in launch.KERNELS.items()}
    with (
        patch.dict(launch.KERNELS, kernels),
        patch.object(fused_gate, 'INTERPRETED', True),
    ):
        yield launches


class CallCounter(TorchDispatchMode):
    """Counts the calls that make a device work: no views.

    A custom operator, one kernel of Triton's, is one.
    """

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
    with _pretending(), CallCounter() as counter:
        network.train()(images)[-1].sum().backward()
    return counter.calls


def _count_kernels(network: nn.Module) -> int:
    """Count inductor's kernels, and those of the fused gates in between.

    Its code is generated but neither compiled nor run.
    """
    from torch._inductor import metrics
    from torch._inductor.async_compile import AsyncCompile

    torch._dynamo.reset()
    metrics.reset()
    images = torch.randn(8, 3, 32, 32)
    compiled(network.train(), images)
    nothing = patch.object(
        AsyncCompile, 'cpp_pybinding', lambda *_: lambda *_: None
    )
    with _pretending() as launches, nothing:
        network(images)[-1].sum().backward()
    return metrics.generated_kernel_count + len(launches)
