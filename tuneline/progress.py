"""Progress of long-running work: a bar on a terminal, a line every few seconds elsewhere.

A command that shows its own display of a run, such as `tuneline run`, replaces both with `use_display`.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 15.0


class Advance(Protocol):
    """Reports how many units of the work are done."""

    def __call__(self, done: int, note: str = "") -> None:
        """Show `done` of the total, and a short text such as the current loss."""


Display = Callable[[str, int], AbstractContextManager[Advance]]
"""Shows the progress of one piece of work: takes its description and its total."""

_display: Display | None = None


@contextmanager
def bar(description: str, total: int) -> Iterator[Advance]:
    """Show progress while the block runs; call the yielded function after each piece of work."""
    display = _display or (_rich_bar if sys.stderr.isatty() else _lines)
    with display(description, total) as advance:
        yield advance


@contextmanager
def use_display(display: Display) -> Iterator[None]:
    """Show every progress bar with `display` while the block runs."""
    global _display
    previous, _display = _display, display
    try:
        yield
    finally:
        _display = previous


def duration(seconds: float) -> str:
    """Format a duration: `9.5 s`, `1 min 20 s` or `2 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return "{} min {:02d} s".format(*divmod(round(seconds), 60))
    return "{} h {:02d} min".format(*divmod(round(seconds / 60), 60))


class Meter:
    """Formats the state of one piece of work: `training 40/100, 1 min 20 s left, loss 2.1`."""

    def __init__(self, description: str, total: int) -> None:
        self.description, self.total = description, total
        self._begin = time.monotonic()
        self._first: int | None = None
        """Units that were done before, by the run that a resumed training continues."""

    def text(self, done: int, note: str = "") -> str:
        """Return the text for `done` units; time left is unknown before the second call."""
        if self._first is None:
            self._first, self._begin = done, time.monotonic()
        parts = [f"{self.description} {done}/{self.total}"]
        if self._first < done < self.total:
            seconds = (time.monotonic() - self._begin) / (done - self._first) * (self.total - done)
            parts.append(f"{duration(seconds) if seconds >= 59.95 else f'{seconds:.0f} s'} left")
        return ", ".join([*parts, *filter(None, [note])])


@contextmanager
def _rich_bar(description: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda done, note="": progress.update(task, completed=done, note=note)


@contextmanager
def _lines(description: str, total: int) -> Iterator[Advance]:
    last = time.monotonic()

    def advance(done: int, note: str = "") -> None:
        nonlocal last
        if done >= total or time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{description}: {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

    yield advance
