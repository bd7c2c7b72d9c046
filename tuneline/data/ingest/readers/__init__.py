"""Readers: one file of any kind -> its rows, as JSON texts with the line at which each begins, a chunk at a time.

A file that does not parse is an error with its line. A record that parses but cannot be a row (a torn CSV record) goes
on as a row that says what is wrong with it (`schema.BAD_ROW`), so that `align` refuses or counts it as the recipe says.
"""

from tuneline.data.ingest.readers.base import Chunk
from tuneline.data.ingest.readers.reader_registry import read_chunks

__all__ = ["Chunk", "chunks"]
