"""How commands end: one line and an exit code for our errors, for SIGTERM (2) and for Ctrl-C (130).

A training step handles these signals itself: it saves its state and raises `StoppedError`.
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
    """SIGTERM was received; a KeyboardInterrupt, so that libraries stop as they do for Ctrl-C."""


_open: list["ReceivedSignal"] = []


class ReceivedSignal:
    """The received signal; `name` is empty if there was none."""

    name = ""

    @property
    def line(self) -> str:
        """The message for the user."""
        shown = "Ctrl-C" if self.name == "SIGINT" else self.name
        return f"Stopped by {shown}. Finished steps are kept."

    @property
    def code(self) -> int:
        """The exit code."""
        return EXIT_CODES[self.name]


@contextmanager
def raise_on_signal() -> Iterator[ReceivedSignal]:
    """Raise an exception for the first SIGTERM or SIGINT; a second one ends the process immediately.

    Handlers installed by others stay. Signals are handled only in the main thread.
    """
    received = ReceivedSignal()

    def end(number: int, frame: FrameType | None) -> None:
        received.name = signal.Signals(number).name
        for handled in before:
            signal.signal(handled, signal.SIG_DFL)
        raise_if_received()

    defaults: dict[signal.Signals, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    main = threading.current_thread() is threading.main_thread()
    before = {number: handler for number, handler in defaults.items() if main and signal.getsignal(number) is handler}
    _open.append(received)
    for number in before:
        signal.signal(number, end)
    try:
        yield received
    finally:
        _open.remove(received)
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_if_received() -> None:
    """Raise the exception of a received signal again, because libraries swallow it while they try imports."""
    for received in _open:
        if received.name:
            raise Terminated if received.name == "SIGTERM" else KeyboardInterrupt


def run_command(command: Callable[[], object]) -> int:
    """Run a command, print the line for the error or signal that ended it, and return the exit code.

    Args:
        command: Raises SystemExit for an exit code other than 0.
    """
    with raise_on_signal() as received:
        try:
            command()
            return 0
        except BaseException as error:
            received.name = received.name or _signal_behind(error)
            if received.name:
                line, code = received.line, received.code
            elif isinstance(error, TunelineError):
                line, code = str(error), error.exit_code
            else:
                raise
    sys.stderr.write(f"{line}\n")
    return code


def _signal_behind(error: BaseException | None) -> str:
    """Return the signal of an interrupt, even if typer turned it into an exit code; otherwise an empty string."""
    if isinstance(error, SystemExit) and error.code == EXIT_CODES["SIGINT"]:
        while error is not None and not isinstance(error, KeyboardInterrupt):
            error = error.__cause__ or error.__context__
    if not isinstance(error, KeyboardInterrupt):
        return ""
    return "SIGTERM" if isinstance(error, Terminated) else "SIGINT"
