"""Measurements, each a program with a table and `--json`; nothing here is a timed test."""
