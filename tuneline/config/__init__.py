"""Typed recipes: what a run needs, checked before anything is computed. Knows neither torch nor ZenML."""
