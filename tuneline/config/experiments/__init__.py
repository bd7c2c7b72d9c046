"""Experiments with many runs: sweeps, hyperparameter searches and the tables of the LlamaFactory paper."""
