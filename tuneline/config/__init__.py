"""Typed recipes, validated before anything is computed. Imports neither torch nor ZenML."""
