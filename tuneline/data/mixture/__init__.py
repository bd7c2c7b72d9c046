"""Mixtures: interleaved datasets, deduplication, train/validation split and contamination checks."""
