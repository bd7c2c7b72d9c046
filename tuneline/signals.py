"""How every command ends: one line and an exit code for an error of ours, for SIGTERM (2) and for Ctrl-C (130).

A training step takes these signals itself, saves its state and ends with `StoppedError`.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tuneline.errors import TunelineError

EXIT_CODES = {"SIGTERM": 2, "SIGINT": 130}


class Terminated(KeyboardInterrupt):
    """SIGTERM came: libraries end what they do as they end it at Ctrl-C, and do not take it for an error to handle."""


_open: list["Stop"] = []


class ReceivedSignal:
    """The name of the signal that came, or an empty string."""

    name = ""

    @property
    def line(self) -> str:
        """What the user reads."""
        shown = "Ctrl-C" if self.name == "SIGINT" else self.name
        return f"Stopped by {shown}. What is finished is kept."

    @property
    def code(self) -> int:
        """The exit code."""
        return EXIT_CODES[self.name]


@contextmanager
def raise_on_signal() -> Iterator[ReceivedSignal]:
    """Turn the first SIGTERM or SIGINT into an exception; a second one ends the process at once.

    Handlers that somebody else installed stay. Only the main thread can listen.
    """
    stop = ReceivedSignal()

    def end(number: int, frame: FrameType | None) -> None:
        stop.name = signal.Signals(number).name
        for mine in before:
            signal.signal(mine, signal.SIG_DFL)
        raise_if_received()

    usual: dict[signal.Signals, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    main = threading.current_thread() is threading.main_thread()
    before = {number: how for number, how in usual.items() if main and signal.getsignal(number) is how}
    _open.append(stop)
    for number in before:
        signal.signal(number, end)
    try:
        yield stop
    finally:
        _open.remove(stop)
        for number, how in before.items():
            signal.signal(number, how)


def raise_if_received() -> None:
    """Raise the exception of a signal that came, once more; libraries swallow it where they try to import others."""
    for stop in _open:
        if stop.name:
            raise Terminated if stop.name == "SIGTERM" else KeyboardInterrupt


def run_command(command: Callable[[], object]) -> int:
    """Run a command; print the one line of what ended it.

    Args:
        command: Raises SystemExit for an exit code other than 0.
    """
    with raise_on_signal() as stop:
        try:
            command()
            return 0
        except BaseException as error:
            stop.name = stop.name or _signal_behind(error)
            if stop.name:
                line, code = stop.line, stop.code
            elif isinstance(error, TunelineError):
                line, code = str(error), error.exit_code
            else:
                raise
    sys.stderr.write(f"{line}\n")
    return code


def _signal_behind(error: BaseException | None) -> str:
    """Name the signal of an interrupt, also of one that typer made an exit code of; else an empty string."""
    if isinstance(error, SystemExit) and error.code == EXIT_CODES["SIGINT"]:
        while error is not None and not isinstance(error, KeyboardInterrupt):
            error = error.__cause__ or error.__context__
    if not isinstance(error, KeyboardInterrupt):
        return ""
    return "SIGTERM" if isinstance(error, Terminated) else "SIGINT"
