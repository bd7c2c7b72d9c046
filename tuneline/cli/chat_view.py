"""Display of a chat: answers as they arrive, on a terminal or as plain text."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from tuneline.cli import show

if TYPE_CHECKING:
    from tuneline.serve.chat.interface import Answer, ChatDelta

MIN_COLUMNS_WIDTH = 100
"""Terminal width from which two answers are shown side by side."""


class AnswerView(Protocol):
    """Displays one answer."""

    def show(self, delta: "ChatDelta") -> None:
        """Display new parts."""

    def finish(self, answer: "Answer") -> None:
        """Display the end of the answer: version and speed."""


class PlainView:
    """Plain text: answers and output of commands on standard output, everything else on standard error."""

    def message(self, text: str) -> None:
        """Display a text."""
        sys.stdout.write(f"{_printable(text)}\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Display nothing: a program reads the output."""

    def error(self, text: str) -> None:
        """Display an error."""
        sys.stderr.write(f"{_printable(text)}\n")
        sys.stderr.flush()

    def answer(self, heading: str = "") -> "PlainAnswer":
        """Begin an answer."""
        if heading:
            self.message(f"[{heading}]")
        return PlainAnswer()


class PlainAnswer:
    """An answer as plain text."""

    def __init__(self) -> None:
        self._written = _LineState()

    def show(self, delta: "ChatDelta") -> None:
        """Write the text; thoughts go to standard error."""
        from tuneline.serve.chat.interface import format_tool_call

        if delta.reasoning:
            sys.stderr.write(_printable(delta.reasoning))
        text = delta.content + "".join(f"{format_tool_call(call)}\n" for call in delta.tool_calls)
        if text:
            sys.stdout.write(self._written.add(_printable(text)))
            sys.stdout.flush()

    def finish(self, answer: "Answer") -> None:
        """End the line of the answer, and write its summary to standard error."""
        sys.stdout.write(self._written.end())
        sys.stdout.flush()
        if answer.reasoning:
            sys.stderr.write("\n")
        if answer.summary():
            sys.stderr.write(f"{answer.summary()}\n")
        sys.stderr.flush()


class TerminalView:
    """A terminal: thoughts are dimmed, tool calls are coloured."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def message(self, text: str) -> None:
        """Display a text."""
        self.console.print(Text(_printable(text)), soft_wrap=True)

    def note(self, text: str) -> None:
        """Display a note for people."""
        self.console.print(Text(_printable(text), "dim"), soft_wrap=True)

    def error(self, text: str) -> None:
        """Display an error."""
        self.console.print(Text(_printable(text), "red"), soft_wrap=True)

    def answer(self, heading: str = "") -> "TerminalAnswer":
        """Begin an answer."""
        if heading:
            self.console.print(Text(heading, "bold"))
        return TerminalAnswer(self.console)

    @property
    def has_room_for_columns(self) -> bool:
        """Whether two answers fit side by side."""
        return self.console.width >= MIN_COLUMNS_WIDTH


class TerminalAnswer:
    """An answer on a terminal, written as it arrives."""

    def __init__(self, console: Console) -> None:
        self._console, self._written, self._thinking = console, _LineState(), False

    def show(self, delta: "ChatDelta") -> None:
        """Write the text in the style of its kind."""
        for text, style in _styled_parts(delta, self._thinking):
            self._console.out(self._written.add(text), style=style, end="", highlight=False)
        self._thinking = bool(delta.reasoning) or (self._thinking and not delta.content)

    def finish(self, answer: "Answer") -> None:
        """End the line of the answer, and write its summary."""
        self._console.out(self._written.end(), end="", highlight=False)
        if answer.summary():
            self._console.print(Text(answer.summary(), "dim"), soft_wrap=True)


class ColumnsView(AbstractContextManager["ColumnsView"]):
    """Two answers side by side, updated while they arrive."""

    def __init__(self, console: Console, headings: tuple[str, str]) -> None:
        self._headings = headings
        self._texts = Text(), Text()
        self._live = Live(console=console, refresh_per_second=8, vertical_overflow="ellipsis")

    def __enter__(self) -> "ColumnsView":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._update()
        self._live.stop()

    def columns(self) -> tuple["ColumnAnswer", "ColumnAnswer"]:
        """Return the views of both answers."""
        return ColumnAnswer(self._texts[0], self._update), ColumnAnswer(self._texts[1], self._update)

    def _update(self) -> None:
        columns = [Column(Text(heading, "bold"), ratio=1, overflow="fold") for heading in self._headings]
        table = Table(*columns, expand=True, show_edge=False)
        table.add_row(*self._texts)
        self._live.update(table)


class ColumnAnswer:
    """An answer in a column."""

    def __init__(self, text: Text, update: Callable[[], None]) -> None:
        self._text, self._update, self._thinking = text, update, False

    def show(self, delta: "ChatDelta") -> None:
        """Add the text in the style of its kind."""
        for text, style in _styled_parts(delta, self._thinking):
            self._text.append(text, style)
        self._thinking = bool(delta.reasoning) or (self._thinking and not delta.content)
        self._update()

    def finish(self, answer: "Answer") -> None:
        """Add the summary."""
        self._text.append(f"\n{answer.summary()}", "dim")
        self._update()


class _LineState:
    """Whether the last text ended its line."""

    def __init__(self) -> None:
        self._is_open = False

    def add(self, text: str) -> str:
        self._is_open = not text.endswith("\n") if text else self._is_open
        return text

    def end(self) -> str:
        return "\n" if self._is_open else ""


def _styled_parts(delta: "ChatDelta", thinking: bool) -> list[tuple[str, str]]:
    """Return the texts of new parts with their styles; the answer begins on a new line after thoughts."""
    from tuneline.serve.chat.interface import format_tool_call

    parts = [(_printable(delta.reasoning), "dim")] if delta.reasoning else []
    if delta.content:
        after_thoughts = "\n" if thinking or delta.reasoning else ""
        parts.append((after_thoughts + _printable(delta.content), ""))
    return [*parts, *((f"\n{_printable(format_tool_call(call))}\n", "cyan") for call in delta.tool_calls)]


def _printable(text: str) -> str:
    from tuneline.serve.chat import terminal_text

    return terminal_text.printable(text)


def open_view() -> PlainView | TerminalView:
    """Return the view for standard output; plain text if input or output is not a terminal."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return TerminalView(show.console())
    return PlainView()
