"""One image through a folded classifier, in PyTorch and ONNX Runtime."""

import copy
from collections.abc import Callable, Iterator

import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from sb_mm.deploy import fold
from sb_mm.deploy.onnx import Normalise, exportable, wrap

from .measurement import Measurement, Settings, one_thread, take_turns
from .networks import (
    ATTENTION,
    CLASSES,
    SB,
    classify_timm,
    classify_torchvision,
    installed,
)

_PIXELS = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
TOLERANCE = 1e-4  # of the scores
EAGER = 'PyTorch'
FOLDED = 'PyTorch, folded'
FOLDED_NHWC = 'PyTorch, folded, channels_last'
PORTABLE = 'ONNX Runtime'
THIS_CPU = 'ONNX Runtime, --this-cpu'
# What "best of PyTorch and ONNX Runtime" is the best of.
AFTER_FOLDING = (FOLDED, FOLDED_NHWC, PORTABLE, THIS_CPU)


def inference(settings: Settings) -> Iterator[Measurement]:
    """Measure an image from its pixels to the scores of 1,000 classes.

    On one thread: the waiting threads of PyTorch and ONNX Runtime would take
    the cores from each other.
    """
    with one_thread():
        yield from _inference(settings)


def _inference(settings: Settings) -> Iterator[Measurement]:
    size = 64 if settings.tiny else 224
    images = torch.rand(1, 3, size, size) * 255
    for width in (0.35,) if settings.tiny else (0.35, 1.0):
        calls = {}
        for kind in ATTENTION:
            for runtime, call in _runtimes(kind, width, images, settings):
                calls[f'{kind}: {runtime}'] = call
        for name, make in PEERS.items():
            if installed(name, settings.notes):
                network = make(width, (size, size))
                calls[f'{name}: {EAGER}'] = _without_gradient(network, images)
        case = dict(width=width, batch=1, size=size)
        yield from take_turns(case, calls, settings.rounds, number=10)


def build_classifier(kind: str, width: float) -> nn.Module:
    """Return an mmpretrain classifier whose norms and shifts do something."""
    backbone = dict(type='sb_mm.AttentionMobileNetV2', **ATTENTION[kind])
    model = _classifier(widen_factor=width, **backbone)
    for name, parameter in model.named_parameters():
        if name.endswith('lambda_'):
            nn.init.uniform_(parameter, -0.5, 0.5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def _classifier(**backbone) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build(
        dict(
            type='ImageClassifier',
            data_preprocessor=dict(_PIXELS),
            backbone=backbone,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead', num_classes=CLASSES, in_channels=1280
            ),
        )
    )


class PeerClassifier(nn.Module):
    """A classifier of others, from the pixels to the scores as ours.

    Args:
        network: From normalised pixels to logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        pixels = MODELS.build(dict(type='ClsDataPreprocessor', **_PIXELS))
        self.normalise = Normalise(pixels)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to scores ``(N, classes)``."""
        return self.network(self.normalise(images)).softmax(1)


def _of_mmpretrain(width: float, size: tuple[int, int]) -> nn.Module:
    model = _classifier(type='MobileNetV2', widen_factor=width)
    model.eval()  # of mmpretrain's backbone, it returns nothing
    return wrap(model, size)


PEERS: dict[str, Callable[[float, tuple[int, int]], nn.Module]] = dict(
    mmpretrain=_of_mmpretrain,
    torchvision=lambda width, _: PeerClassifier(
        classify_torchvision(width)
    ).eval(),
    timm=lambda width, _: PeerClassifier(classify_timm(width)).eval(),
)


def _runtimes(
    kind: str, width: float, images: Tensor, settings: Settings
) -> Iterator[tuple[str, Callable]]:
    model = build_classifier(kind, width)
    size = tuple(images.shape[2:])
    plain = wrap(copy.deepcopy(model), size)
    folded = exportable(fold(model), size)
    yield EAGER, _without_gradient(plain, images)
    yield FOLDED, _without_gradient(folded, images)
    last = copy.deepcopy(folded).to(memory_format=torch.channels_last)
    yield (
        FOLDED_NHWC,
        _without_gradient(last, images.to(memory_format=torch.channels_last)),
    )
    packages = ('onnx', 'onnxruntime', 'onnxscript')
    if settings.tiny and kind != SB:  # an export takes seconds
        return
    if all(installed(p, settings.notes) for p in packages):
        expected = _without_gradient(plain, images)()
        for name, run in _onnx(folded, images):
            _check_equal(name, run(), expected)
            yield name, run


def _without_gradient(
    network: nn.Module, images: Tensor
) -> Callable[[], Tensor]:
    @torch.inference_mode()
    def run() -> Tensor:
        return network(images)

    return run


def _onnx(folded: nn.Module, images: Tensor) -> Iterator[tuple[str, Callable]]:
    from sb_mm.deploy.onnx import to_onnx
    from sb_mm.deploy.this_cpu import for_this_cpu

    both = torch.cat([images, images])
    yield PORTABLE, _session(to_onnx(folded, both, dynamic=True), images)
    one = for_this_cpu(to_onnx(folded, images, dynamic=False))
    yield THIS_CPU, _session(one, images)


def _session(
    model: 'onnx.ModelProto',  # noqa: F821
    images: Tensor,
) -> Callable[[], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    feed = dict(images=images.numpy())
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _check_equal(name: str, scores: Tensor, expected: Tensor) -> None:
    worst = (scores - expected).abs().max()
    if not worst <= TOLERANCE:
        raise RuntimeError(
            f'{name} differs by {worst:.1e} from the network: they do not '
            'compute the same, so their times mean nothing.'
        )
