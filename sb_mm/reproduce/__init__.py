"""Whole tables of the paper: many trainings, started, resumed, recorded."""
