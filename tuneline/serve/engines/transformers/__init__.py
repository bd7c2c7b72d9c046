"""Inference in this process with transformers: continuous batching in one decode loop."""
