"""Batch inference: answers to the rows of a dataset, resumable, scored where rows have references."""
