"""Monitoring of a training: callbacks, evaluation, samples, resource usage and the report."""
