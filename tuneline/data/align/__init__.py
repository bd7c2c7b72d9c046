"""Alignment: records in any supported format become examples in one schema."""
