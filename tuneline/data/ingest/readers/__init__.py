"""Readers: read a file of any supported kind in chunks of rows, as JSON texts with the line at which each row begins.

A file that cannot be parsed is an error with its line. A record that can be parsed but is not a row (a truncated CSV
record) becomes a row with the error as its value (`schema.BAD_ROW_KEY`), which `align` refuses or counts as the recipe
sets.
"""

from tuneline.data.ingest.readers.base import Chunk
from tuneline.data.ingest.readers.reader_registry import read_chunks

__all__ = ["Chunk", "read_chunks"]
