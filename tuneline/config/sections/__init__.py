"""Sections of a recipe, one module per section."""
