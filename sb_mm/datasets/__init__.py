"""Datasets. ``voc`` is built on mmdet, the others need neither host."""
