"""The version of sb_mm; ``setup.py`` reads it without importing torch."""

__version__ = '0.1.0'
