"""One JSON list of objects, read row after row through a window, so that the list is never in memory as a whole.

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
"""Characters that are read at once; a longer row makes the window longer."""

MAX_LITERAL_CHARS = len("-Infinity")
_spaces = re.compile(f"[{WHITESPACE}]*")
_first_key = re.compile(r'\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*(.)', re.DOTALL)
_decoder = json.JSONDecoder()


def read_json_array(path: Path) -> Iterator[Chunk]:
    """Read one JSON list of objects; `line` is where a row begins in the file."""
    with open_text(path, by_line=False) as file:
        window = _Window(path, io.TextIOWrapper(file, encoding="utf-8", newline="\n"), row_end_callback(file))
        yield from group_into_chunks(_rows(window), lambda line, text: check_row(path, line, text))


def _rows(window: "_Window") -> Iterator[tuple[int, bytes]]:
    if window.next_sign() != "[":
        raise _no_list(window)
    window.step(1)
    if window.next_sign() != "]":
        yield window.line, window.value()
        while window.next_sign() == ",":
            window.step(1)
            if window.next_sign() == "]":
                raise window.error("a comma stands before the closing bracket")
            yield window.line, window.value()
    if window.next_sign() != "]":
        raise window.error("Expecting ',' delimiter" if window.next_sign() else "the file ends inside the list")
    window.step(1)
    if window.next_sign():
        raise window.error("the list is closed, and more text follows")


class _Window:
    """The part of a text that is being read: `text[at:]` is still to come, `at` is on `line`.

    `num_gone` signs of the line at which `text` begins are no longer in it.
    """

    def __init__(self, path: Path, file: TextIO, end_row: Callable[[], None]) -> None:
        self.path, self.file, self.end_row = path, file, end_row
        self.longest = limits.ROW_BYTES.value()
        self.text, self.at, self.line, self.num_gone = "", 0, 1, 0

    def step(self, num_signs: int) -> None:
        """Go on by some signs."""
        self.line += self.text.count("\n", self.at, self.at + num_signs)
        self.at += num_signs

    def next_sign(self) -> str:
        """Go on to the next sign that is no space and return it, or nothing at the end."""
        while True:
            match = _spaces.match(self.text, self.at)
            self.step(match.end() - self.at if match else 0)
            if self.at < len(self.text) or not self._read_on():
                return self.text[self.at : self.at + 1]

    def value(self) -> bytes:
        """Go on behind the value that begins here and return its text."""
        while True:
            try:
                _, end = _decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                ahead = error.pos - self.at
                if not (self._may_be_cut(error) and self._read_on()):
                    raise self.error(error.msg, ahead) from None
            except (ValueError, RecursionError) as error:
                raise unreadable_row_error(self.path, self.line, error) from None
            else:
                text = self.text[self.at : end]
                self.step(end - self.at)
                return text.encode()

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - MAX_LITERAL_CHARS

    def _read_on(self) -> bool:
        """Read at least as much as is still to come, so that a long row is not begun too often."""
        begin = self._line_begin()
        self.num_gone = self.at - begin + (self.num_gone if begin == 0 else 0)
        rest = self.text[self.at :]
        if len(rest) > self.longest:
            raise row_too_long_error(f"{self.path}:{self.line}")
        self.end_row()  # the row is measured here, as a window holds many
        more = self.file.read(max(WINDOW_CHARS, len(rest)))
        self.text, self.at = rest + more, 0
        return bool(more)

    def _line_begin(self) -> int:
        return self.text.rfind("\n", 0, self.at) + 1

    def error(self, what: str, ahead: int = 0) -> DataError:
        """Return the error of a text that is no JSON list, so many signs ahead."""
        begin = self._line_begin()
        error = json.JSONDecodeError(what, self.text[begin:], self.at - begin + ahead)
        error.colno += self.num_gone if begin == 0 and error.lineno == 1 else 0
        return invalid_json_error(self.path, self.line, error)


def _no_list(window: _Window) -> DataError:
    """Say what a file holds that is no list."""
    head, place = window.text[window.at :], f"{window.path}:{window.line}"
    first, _, rest = head.partition("\n")
    if rest.strip() and _is_row(first):
        return DataError(f"{place}: expected a JSON list of rows, got one object a line. Name the file .jsonl.")
    match = _first_key.match(head)
    if match is None:
        return window.error("expected a list of rows")
    key, opening = match.groups()
    what = {
        "{": f"keyed by {key!r} and so on. Write its values as a list, each with its key as a column",
        "[": f"whose {key!r} holds a list. Write that list alone if it is the rows, or [ ] around all if it is one",
    }.get(opening, f"that begins with {key!r}. Write [ ] around it if it is one row")
    return DataError(f"{place}: expected a JSON list of rows, got one object {what}.")


def _is_row(line: str) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
