"""Progress of long work: a bar on a terminal, periodic lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 15.0


class Advance(Protocol):
    """Update a progress bar, with an optional note."""

    def __call__(self, done: int, note: str = "") -> None:
        """Show that `done` of the total units are finished."""


@contextmanager
def bar(description: str, total: int) -> Iterator[Advance]:
    """Show progress for the duration of the block; call the yielded function after each unit of work."""
    if sys.stderr.isatty():
        with _rich_bar(description, total) as advance:
            yield advance
        return
    yield _lines(description, total)


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


def _lines(description: str, total: int) -> Advance:
    last = time.monotonic()

    def advance(done: int, note: str = "") -> None:
        nonlocal last
        if done >= total or time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{description}: {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

    return advance
