"""Hooks of a training; in a config they are ``sb_mm.<class>``."""

from .atomic_checkpoint import AtomicCheckpointHook
from .attention_stats import AttentionStatsHook
from .compile import CompileHook
from .divergence import DivergenceHook
from .resume import EpochSeedHook, ResumedScheduleHook, ValidateResumedHook

__all__ = [
    'AtomicCheckpointHook',
    'AttentionStatsHook',
    'CompileHook',
    'DivergenceHook',
    'EpochSeedHook',
    'ResumedScheduleHook',
    'ValidateResumedHook',
]
