"""Benchmarks: programs that print a table, or JSON with `--json`. No test depends on their timings."""
