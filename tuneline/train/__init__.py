"""Trainer: stages, each a function of rows, model and config that leaves a checkpoint and a report. No tracking here."""
