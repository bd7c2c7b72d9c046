"""Tokenization: examples become token rows with loss masks, truncated and packed."""
