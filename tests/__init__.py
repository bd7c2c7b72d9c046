"""Tests; `tests.tiny` builds what they need."""
