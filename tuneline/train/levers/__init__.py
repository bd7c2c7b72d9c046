"""Levers: optimizations of the training step (`train.levers`) that are verified against the plain model."""
