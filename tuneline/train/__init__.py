"""Trainer: a stage is a function of rows, model and config that leaves a checkpoint and a report. Tracks nothing."""
