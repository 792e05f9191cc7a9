"""The networks that are compared: ours and those of others."""

import importlib
from collections.abc import Callable

import mmpretrain.models  # noqa: F401  fills the registry
import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

import sb_mm.models  # noqa: F401  fills the registry

STATIC, SE, SB = 'static', 'SE', 'SB'
CLASSES = 1000  # of ImageNet
LAYER_WISE = dict(attention_layers=('expand', 'depthwise', 'project'))
ATTENTION = {
    STATIC: {},
    SE: dict(attention=dict(type='sb_mm.SqueezeExcite'), **LAYER_WISE),
    SB: dict(attention=dict(type='sb_mm.ShiftBalance'), **LAYER_WISE),
}


def build(kind: str, width: float, **kwargs) -> nn.Module:
    """Return the backbone ``static``, ``SE`` or ``SB`` of our MobileNetV2."""
    torch.manual_seed(0)
    config = dict(
        type='sb_mm.AttentionMobileNetV2', widen_factor=width, **kwargs
    )
    return MODELS.build({**config, **ATTENTION[kind]})


def build_cifar(kind: str, width: float) -> nn.Module:
    """Return the same in the form for 32 x 32 pixels."""
    torch.manual_seed(0)
    config = dict(type='sb_mm.AttentionMobileNetV2CIFAR', widen_factor=width)
    attention = {k: v for k, v in ATTENTION[kind].items() if k == 'attention'}
    return MODELS.build({**config, **attention})


def build_mmpretrain(width: float) -> nn.Module:
    """Return mmpretrain's MobileNetV2."""
    return MODELS.build(dict(type='MobileNetV2', widen_factor=width))


def build_torchvision(width: float) -> nn.Module:
    """Return torchvision's MobileNetV2 without its classifier."""
    return classify_torchvision(width).features


def build_timm(width: float) -> nn.Module:
    """Return timm's MobileNetV2 without its classifier."""
    return _timm(width, num_classes=0, global_pool='')


def classify_torchvision(width: float) -> nn.Module:
    """Return torchvision's MobileNetV2 for the classes of ImageNet."""
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(num_classes=CLASSES, width_mult=width)


def classify_timm(width: float) -> nn.Module:
    """Return timm's MobileNetV2 for the classes of ImageNet."""
    return _timm(width, num_classes=CLASSES)


def _timm(width: float, **kwargs) -> nn.Module:
    import timm

    name = f'mobilenetv2_{round(100 * width):03d}'
    return timm.create_model(name, **kwargs)


OURS = {
    STATIC: lambda width: build(STATIC, width),
    SE: lambda width: build(SE, width),
    SB: lambda width: build(SB, width),
}
OTHERS = {
    'mmpretrain': build_mmpretrain,
    'torchvision': build_torchvision,
    'timm': build_timm,
}


def others(notes: list[str]) -> dict[str, Callable[[float], nn.Module]]:
    """Return the static networks of others that are installed."""
    return {k: f for k, f in OTHERS.items() if installed(k, notes)}


def installed(package: str, notes: list[str]) -> bool:
    """Tell whether a package is there; if not, note that it is left out."""
    try:
        importlib.import_module(package)
    except ImportError:
        note = f'{package} is not installed: left out'
        if note not in notes:
            notes.append(note)
        return False
    return True


def last_features(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the last stage's output, whoever's network gave it."""
    return output if isinstance(output, Tensor) else output[-1]
