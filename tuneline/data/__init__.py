"""Data worker: from files to token rows. Knows data sets and tokenizers; nothing of models, training or ZenML."""
