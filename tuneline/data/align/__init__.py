"""Alignment: converts records of any supported format to examples of one schema."""
