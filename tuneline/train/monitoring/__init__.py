"""Monitoring of a training: evaluation, generated samples, metrics, throughput and resource usage."""
