"""Attention layers, usable in anybody's network."""

from .attention import (
    GATES,
    ChannelAttention,
    ChannelGate,
    NoAttention,
    ShiftBalance,
    SqueezeExcite,
    build_attention,
)
from .conv_module import AttentionConvModule, ConvNormAct
from .dynamic_conv import DynamicConv2d
from .norm import GateBatchNorm1d, LevelBatchNorm2d

__all__ = [
    'GATES',
    'AttentionConvModule',
    'ChannelAttention',
    'ChannelGate',
    'ConvNormAct',
    'DynamicConv2d',
    'GateBatchNorm1d',
    'LevelBatchNorm2d',
    'NoAttention',
    'ShiftBalance',
    'SqueezeExcite',
    'build_attention',
]
