"""Datasets. ``voc_devkit`` is built on mmdet, the others need neither."""
