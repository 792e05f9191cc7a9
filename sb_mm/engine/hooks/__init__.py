"""Hooks of a training; in a config they are ``sb_mm.<class>``."""

from .atomic_checkpoint import AtomicCheckpointHook

__all__ = [
    'AtomicCheckpointHook',
]
