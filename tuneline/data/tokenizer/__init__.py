"""Tokenizers: loading, fast encoding, new tokens and modified copies."""
