"""Strict YAML and JSON parsing: size and nesting limits, and line numbers in error messages."""
