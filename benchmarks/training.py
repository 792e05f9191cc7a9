"""A training step: its time, memory and device calls."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sb_mm.models  # noqa: F401  fills the registry
from sb_mm.engine.build import build_model, scope_of
from sb_mm.registry import MODELS

from .inputs import CONFIGS, cifar_config, epoch
from .measure import (
    Calls,
    Pair,
    Rows,
    Settings,
    compare,
    in_turns,
    kernels,
    memory,
)

STATIC, SE, SB, DYCONV = 'static', 'SE', 'SB', 'DyConv'
FUSED_SE, FUSED_SB = 'SE fused', 'SB fused'
# At every convolution of the blocks, as in Tables 2, 4 and 6.
KINDS = {
    STATIC: dict(attention=None),
    SE: dict(attention=dict(type='sb_mm.SqueezeExcite', fused=False)),
    SB: dict(attention=dict(type='sb_mm.ShiftBalance', fused=False)),
    FUSED_SE: dict(attention=dict(type='sb_mm.SqueezeExcite', fused=True)),
    FUSED_SB: dict(attention=dict(type='sb_mm.ShiftBalance', fused=True)),
    DYCONV: dict(attention_conv_cfg=dict(type='sb_mm.DynamicConv2d')),
}
SSDLITE = CONFIGS / 'voc/ssdlite_mobilenetv2-static-w1.0_1xb32-200e_voc0712.py'
# Allocations: nothing runs on a device.
_NO_CALLS = 'empty', 'empty_like', 'empty_strided'
# Of SGD: the weights stay, so that every step is the same.
UNMOVED = dict(lr=0, momentum=0.9)
Form = Callable[[nn.Module, Tensor], object]


def trained_on(settings: Settings, se: bool = True) -> list[str]:
    """Return the kinds of network; on a CPU, fused gates are plain ones."""
    kinds = [STATIC, SB, *([SE] if se else [])]
    return kinds + [f'{kind} fused' for kind in kinds[1:] if settings.on_gpu]


def build(kind: str, width: float, cifar: bool = False) -> nn.Module:
    """Return a backbone of a kind, or its form for 32 x 32 pixels."""
    torch.manual_seed(0)
    name = f'sb_mm.AttentionMobileNetV2{"CIFAR" if cifar else ""}'
    return MODELS.build(dict(type=name, widen_factor=width, **KINDS[kind]))


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
    """Measure steps of MobileNetV2 at ImageNet's size."""
    batch, size = (2, 64) if settings.tiny else (32, 224)
    images = torch.randn(batch, 3, size, size, device=settings.device)
    for width in (0.35,) if settings.tiny else (0.35, 1.0):
        kinds = STATIC, SE, SB
        steps = {kind: step(build(kind, width), images) for kind in kinds}
        what = f'training step x{width}, batch {batch}'
        yield from _step_rows(what, steps, 1.15, settings)


def cifar_step(settings: Settings, form: Form = eager) -> Rows:
    """Measure steps of the networks for CIFAR-10."""
    batch = 8 if settings.tiny else 128
    images = torch.randn(batch, 3, 32, 32, device=settings.device)
    kinds = trained_on(settings, se=form is not compiled)
    kinds += [DYCONV] if form is eager else []
    steps = {k: step(build(k, 0.35, True), images, form) for k in kinds}
    what = f'training step for CIFAR-10 x0.35, batch {batch}, {form.__name__}'
    return _step_rows(what, steps, 2 if settings.on_gpu else 1.3, settings)


def detector_step(settings: Settings, form: Form = eager) -> Rows:
    """Measure steps of SSDLite x1.0, with target assignment and losses."""
    batch, size = 2 if settings.tiny else 32, (3, 300, 300)
    # VOC has 2.4 objects an image.
    data = demo_mm_inputs(batch, size, [3] * batch, 20, device=settings.device)
    images = torch.rand(batch, *size, device=settings.device)
    steps = {}
    for kind in trained_on(settings, se=form is not compiled):
        model, wrapper = _trained(Config.fromfile(SSDLITE), kind, settings)
        form(model.backbone, images)
        steps[kind] = partial(model.train_step, data, wrapper)
    what = f'training step of SSDLite x1.0, batch {batch}, {form.__name__}'
    return _step_rows(what, steps, 1.25, settings)


# These need a GPU, or minutes for a compiler.
cifar_graphs = partial(cifar_step, form=graphs)
cifar_compiled = partial(cifar_step, form=compiled)
detector_graphs = partial(detector_step, form=graphs)
detector_compiled = partial(detector_step, form=compiled)


def _step_rows(
    what: str, steps: Calls, most: float, settings: Settings
) -> Rows:
    """Yield times and memory; on a GPU, kernels and their time as well."""
    kinds = (SB, FUSED_SB, SE, FUSED_SE)
    pairs = [Pair(kind, STATIC, most) for kind in kinds]
    pairs += [Pair(SB, SE, 1), Pair(FUSED_SB, SB, 1), Pair(SB, DYCONV)]
    yield from in_turns(what, steps, pairs, settings)
    sizes = [Pair(SB, STATIC, 1.1), Pair(SB, SE, 1), Pair(FUSED_SB, SB)]
    yield from memory(f'a {what}', steps, sizes, settings)
    if settings.on_gpu:
        pairs = [pair._replace(target=None) for pair in pairs]
        yield from kernels(f'a {what}', steps, pairs)


def step(
    network: nn.Module, images: Tensor, form: Form = eager
) -> Callable[[], None]:
    """Return what takes one training step, with SGD as in our configs."""
    network = network.to(images.device).train()
    form(network, images)
    optimizer = torch.optim.SGD(network.parameters(), **UNMOVED)

    def run() -> None:
        optimizer.zero_grad()
        features = network(images)[-1]
        features.mean((2, 3)).square().mean().backward()
        optimizer.step()

    return run


def _trained(
    config: Config, kind: str, settings: Settings
) -> tuple[BaseModel, OptimWrapper]:
    torch.manual_seed(0)
    config.model.backbone.update(KINDS[kind])
    model = build_model(config).to(settings.device).train()
    return model, OptimWrapper(torch.optim.SGD(model.parameters(), **UNMOVED))


def training_loop(settings: Settings) -> Rows:
    """Time epochs of CIFAR-10 x0.35, from the loader to the optimizer."""
    images = 16 if settings.tiny else 6400 if settings.on_gpu else 1280
    calls = {}
    for kind in trained_on(settings, se=False):
        config = cifar_config(images)
        model, wrapper = _trained(config, kind, settings)
        train = partial(model.train_step, optim_wrapper=wrapper)
        with scope_of(config):
            calls[kind] = epoch(config.train_dataloader, train)
    pairs = [Pair(SB, STATIC), Pair(FUSED_SB, STATIC)]
    what = f'training loop for CIFAR-10 x0.35, {images} images'
    return in_turns(what, calls, pairs, settings, images=images)


def device_calls(settings: Settings) -> Rows:
    """Count the device calls of a step, the same on every machine."""
    calls = {kind: [count_calls(build(kind, 0.35, True))] for kind in KINDS}
    pairs = [Pair(SB, STATIC, 3.9), Pair(SE, STATIC, 3.9)]
    pairs += [Pair(FUSED_SB, STATIC, 2.4), Pair(FUSED_SE, STATIC, 2.4)]
    pairs.append(Pair(DYCONV, STATIC))
    yield from compare('device calls, eager', 'calls', calls, pairs)


def compiled_kernels(settings: Settings) -> Rows:
    """Count the kernels that ``torch.compile`` makes of the same networks."""
    kinds = [kind for kind in KINDS if kind != DYCONV]
    kernels = {k: [_count_kernels(build(k, 0.35, True))] for k in kinds}
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
    """Counts the calls that make a device work: custom kernels, no views."""

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
    """Count inductor's kernels, without running them, and fused gates'."""
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
