"""Previews: the first rows of each dataset, processed by the functions that a run uses."""
