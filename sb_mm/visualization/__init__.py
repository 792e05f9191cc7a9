"""Figures of what a training left: attention, curves, detections."""
