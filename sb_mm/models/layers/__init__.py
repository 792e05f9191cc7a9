"""Attention layers, usable in anybody's network."""

from .attention_conv import AttentionConvModule
from .batch_norm import GateBatchNorm1d, LevelBatchNorm2d
from .channel_attention import ChannelAttention, NoAttention
from .dynamic_conv import DynamicConv2d
from .gate import ChannelGate
from .inverted_residual import InvertedResidual
from .shift_balance import ShiftBalance
from .shuffle_block import ShuffleBlock
from .squeeze_excite import SqueezeExcite

__all__ = [
    'AttentionConvModule',
    'ChannelAttention',
    'ChannelGate',
    'DynamicConv2d',
    'GateBatchNorm1d',
    'InvertedResidual',
    'LevelBatchNorm2d',
    'NoAttention',
    'ShiftBalance',
    'ShuffleBlock',
    'SqueezeExcite',
]
