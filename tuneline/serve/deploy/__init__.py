"""Served versions: find, load, verify, follow an alias."""
