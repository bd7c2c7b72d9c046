"""Sections of a recipe, one config model per pipeline step."""
