"""Evaluation tasks: multiple choice, lm-evaluation-harness, log-likelihood and reward models."""
