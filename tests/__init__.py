"""Tests. `tests.tiny` builds their models and projects."""
