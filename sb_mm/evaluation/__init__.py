"""Metrics, built on mmdet."""
