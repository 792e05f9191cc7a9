"""The networks that are compared: ours and those of others."""

import torch
from torch import nn

import sb_mm.models  # noqa: F401  fills the registry
from sb_mm.registry import MODELS

from .measure import Settings

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


def trained_on(settings: Settings, se: bool = True) -> list[str]:
    """Return the kinds of network; on a CPU, fused gates are plain ones."""
    kinds = [STATIC, SB, *([SE] if se else [])]
    return kinds + [f'{kind} fused' for kind in kinds[1:] if settings.on_gpu]


def build(kind: str, width: float, cifar: bool = False) -> nn.Module:
    """Return a backbone of a kind, or its form for 32 x 32 pixels."""
    torch.manual_seed(0)
    name = f'sb_mm.AttentionMobileNetV2{"CIFAR" if cifar else ""}'
    return MODELS.build(dict(type=name, widen_factor=width, **KINDS[kind]))
