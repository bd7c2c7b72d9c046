"""Optimizers that a recipe can name."""
