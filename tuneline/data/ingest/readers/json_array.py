"""Reader of a JSON list of objects. It reads through a window, so that the list is never in memory as a whole.

`json.JSONDecoder` finds the end of each row, and the row keeps its own text.
"""

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import orjson

from tuneline import limits
from tuneline.data.ingest.readers.base import Chunk, group_into_chunks
from tuneline.data.ingest.readers.compression import row_end_callback
from tuneline.data.ingest.readers.jsonl import WHITESPACE, check_row, invalid_json_error, unreadable_row_error
from tuneline.data.ingest.readers.text_stream import open_text, row_too_long_error
from tuneline.errors import DataError

WINDOW_CHARS = 1 << 18
"""Characters per read; the window grows for a longer row."""

MAX_LITERAL_CHARS = len("-Infinity")
_spaces = re.compile(f"[{WHITESPACE}]*")
_first_key = re.compile(r'\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*(.)', re.DOTALL)
_decoder = json.JSONDecoder()


def read_json_array(path: Path) -> Iterator[Chunk]:
    """Read a JSON list of objects; `line` is the line of the file at which a row begins."""
    with open_text(path, by_line=False) as file:
        window = _Window(path, io.TextIOWrapper(file, encoding="utf-8", newline="\n"), row_end_callback(file))
        yield from group_into_chunks(_rows(window), lambda line, text: check_row(path, line, text))


def _rows(window: "_Window") -> Iterator[tuple[int, bytes]]:
    if window.peek() != "[":
        raise _not_a_list_error(window)
    window.advance(1)
    if window.peek() != "]":
        yield window.line, window.read_value()
        while window.peek() == ",":
            window.advance(1)
            if window.peek() == "]":
                raise window.error("trailing comma before the closing bracket")
            yield window.line, window.read_value()
    if window.peek() != "]":
        raise window.error("Expecting ',' delimiter" if window.peek() else "the file ends inside the list")
    window.advance(1)
    if window.peek():
        raise window.error("unexpected text after the list")


class _Window:
    """The part of a file in memory: `text[position:]` is not read yet, and `position` is on `line`.

    `num_dropped` characters of the line at which `text` begins are no longer in it.
    """

    def __init__(self, path: Path, file: TextIO, end_row: Callable[[], None]) -> None:
        self.path, self.file, self.end_row = path, file, end_row
        self.max_row_bytes = limits.ROW_BYTES.value()
        self.text, self.position, self.line, self.num_dropped = "", 0, 1, 0

    def advance(self, num_chars: int) -> None:
        """Move forward by some characters."""
        self.line += self.text.count("\n", self.position, self.position + num_chars)
        self.position += num_chars

    def peek(self) -> str:
        """Skip white space and return the next character, or an empty string at the end."""
        while True:
            match = _spaces.match(self.text, self.position)
            self.advance(match.end() - self.position if match else 0)
            if self.position < len(self.text) or not self._read_more():
                return self.text[self.position : self.position + 1]

    def read_value(self) -> bytes:
        """Move behind the value that begins here and return its text."""
        while True:
            try:
                _, end = _decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                ahead = error.pos - self.position
                if not (self._may_be_incomplete(error) and self._read_more()):
                    raise self.error(error.msg, ahead) from None
            except (ValueError, RecursionError) as error:
                raise unreadable_row_error(self.path, self.line, error) from None
            else:
                text = self.text[self.position : end]
                self.advance(end - self.position)
                return text.encode()

    def _may_be_incomplete(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - MAX_LITERAL_CHARS

    def _read_more(self) -> bool:
        """Read at least as much as is not read yet, so that a long row is not parsed again too often."""
        begin = self._line_begin()
        self.num_dropped = self.position - begin + (self.num_dropped if begin == 0 else 0)
        rest = self.text[self.position :]
        if len(rest) > self.max_row_bytes:
            raise row_too_long_error(f"{self.path}:{self.line}")
        self.end_row()  # the length of a row is checked here, because a window holds many rows
        more = self.file.read(max(WINDOW_CHARS, len(rest)))
        self.text, self.position = rest + more, 0
        return bool(more)

    def _line_begin(self) -> int:
        return self.text.rfind("\n", 0, self.position) + 1

    def error(self, message: str, ahead: int = 0) -> DataError:
        """Build the error of a malformed list, `ahead` characters after the position."""
        begin = self._line_begin()
        error = json.JSONDecodeError(message, self.text[begin:], self.position - begin + ahead)
        error.colno += self.num_dropped if begin == 0 and error.lineno == 1 else 0
        return invalid_json_error(self.path, self.line, error)


def _not_a_list_error(window: _Window) -> DataError:
    """Build the error of a file that contains something other than a list."""
    head, place = window.text[window.position :], f"{window.path}:{window.line}"
    first, _, rest = head.partition("\n")
    if rest.strip() and _is_row(first):
        return DataError(f"{place}: expected a JSON list of rows, got one object per line. Rename the file to .jsonl.")
    match = _first_key.match(head)
    if match is None:
        return window.error("expected a list of rows")
    key, opening = match.groups()
    actual = {
        "{": f"with keys such as {key!r} and objects as values. Convert it to a list, with the key as a column",
        "[": f"whose {key!r} holds a list. Keep that list only if it holds the rows, or add [ ] if the object is a row",
    }.get(opening, f"that begins with {key!r}. Add [ ] if it is a row")
    return DataError(f"{place}: expected a JSON list of rows, got one object {actual}.")


def _is_row(line: str) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
