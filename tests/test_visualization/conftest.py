"""A training small enough for a test, and the tools."""

from test_engine.conftest import SHORT, config, devkit, tool

__all__ = ['SHORT', 'config', 'devkit', 'tool']
