"""Evaluation: scores a model on held-out examples and exams, item by item. Knows nothing of registries or gates."""
