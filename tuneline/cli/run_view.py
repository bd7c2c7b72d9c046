"""What a command shows while it runs pipelines: a line per step, progress, and warnings; the rest goes to a log file.

Lines about finished steps go to standard output, progress and warnings to standard error. On a terminal, the running
step is shown with a spinner, a bar and the time left; elsewhere, progress is a line every few seconds.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from tuneline import progress
from tuneline.cli import show
from tuneline.runner import run_log

if TYPE_CHECKING:
    from tuneline.zenml_integration.step_events import StepEvent

STYLES = {"cached": "cyan", "completed": "green", "failed": "red", "stopped": "yellow"}
REFRESHES_PER_SECOND = 4


class RunView:
    """Prints the lines of a run.

    Args:
        log: The log file of the command.
        steps: Names of the steps, which set the width of the first column.
        show_cached: Print a line for each cached step.
    """

    def __init__(self, log: run_log.RunLog, steps: Iterable[str] = (), *, show_cached: bool = True) -> None:
        self.log, self._show_cached = log, show_cached
        self._width = max(map(len, steps), default=0)
        self.has_run = False
        """Whether a step has started."""

        self._out, self._err = show.console(log.stdout), show.stderr_console(log.stderr)
        self._is_live = log.stderr.isatty() and not self._err.is_dumb_terminal and not log.echo
        self._step, self._note = "", ""
        self._bar: Progress | None = None
        self._warnings: set[str] = set()

    def print(self, content: Any = "") -> None:
        """Print a result on standard output."""
        self.log.flush()
        self._out.print(content, soft_wrap=isinstance(content, str))

    def warn(self, text: str) -> None:
        """Print a warning once, on standard error."""
        if text not in self._warnings:
            self._warnings.add(text)
            self._print_to_stderr(Text.assemble(("Warning  ", "yellow"), text))

    def message(self, text: str) -> None:
        """Print a message on standard error."""
        self._print_to_stderr(Text(text))

    def spinner(self, text: str) -> AbstractContextManager[object]:
        """Show a text with a spinner while the block runs; nothing where standard error is no terminal."""
        return show.status(text, self._err) if self._is_live else ExitStack()

    def on_step(self, event: "StepEvent") -> None:
        """Show the new state of a step."""
        if event.status == "started":
            self._start(event.step)
            return
        self._stop_bar()
        if event.status == "cached" and not self._show_cached:
            return
        words = {"completed": "done in", "failed": "failed after", "stopped": "stopped after"}.get(event.status)
        state = f"{words} {progress.duration(event.seconds)}" if words else event.status
        line = Text(event.step.ljust(self._width) + "  ").append(state, STYLES.get(event.status, ""))
        if self._note and event.status == "completed":
            line.append(f"  {self._note}", "dim")
        self._print_line(line)

    @contextmanager
    def display(self, description: str, total: int) -> Iterator[progress.Advance]:
        """Show the progress of the running step."""
        meter, last = progress.Meter(description, total), time.monotonic()

        def advance(done: int, note: str = "") -> None:
            nonlocal last
            self._note, text = note, meter.text(done, note)
            if self._bar:
                known = total if done < total else None  # a step may continue after its last unit
                self._bar.update(self._bar.task_ids[0], completed=done, total=known, text=text)
            elif not self._is_live and time.monotonic() - last >= progress.SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                self.message(f"{self._step.ljust(self._width)}  running  {text}")

        yield advance

    def close(self) -> None:
        """Remove the bar of a step that has not ended."""
        self._stop_bar()

    def _start(self, step: str) -> None:
        if not self.has_run:
            self.has_run = True
            self._print_line(Text(f"Log      {self.log.path}"))
        self._step, self._note = step, ""
        if self._is_live:
            self._bar = _bar(self._err, self._width)
            self._bar.add_task("", total=None, step=step, text="running")
            self._bar.start()

    def _stop_bar(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _print_line(self, line: Text) -> None:
        self.log.flush()
        self._out.print(line, soft_wrap=True)

    def _print_to_stderr(self, line: Text) -> None:
        self.log.flush()
        self._err.print(line, soft_wrap=True)


@contextmanager
def open_view(name: str, steps: Iterable[str] = (), *, verbose: bool, show_cached: bool = True) -> Iterator[RunView]:
    """Show the runs that are started in the block; the log file is deleted where no step has started.

    Args:
        name: What the name of the log file begins with.
        steps: Names of the steps of a run.
        verbose: Also print the log.
        show_cached: Print a line for each cached step.
    """
    with run_log.capture(name, echo=verbose) as log:
        view = RunView(log, steps, show_cached=show_cached)
        with ExitStack() as stack:
            stack.callback(lambda: None if view.has_run else log.path.unlink(missing_ok=True))
            stack.callback(view.close)
            stack.enter_context(_warnings_to(view))
            with view.spinner("Starting"):
                from tuneline.zenml_integration import log_filter, step_events
            stack.enter_context(log_filter.without_console())
            stack.enter_context(step_events.listen(view.on_step))
            stack.enter_context(progress.use_display(view.display))
            yield view


@contextmanager
def _warnings_to(view: RunView) -> Iterator[None]:
    """Show the warnings of Tuneline; those of other libraries go to the log file alone."""
    handler = _WarningHandler(view)
    logger = logging.getLogger("tuneline")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _WarningHandler(logging.Handler):
    def __init__(self, view: RunView) -> None:
        super().__init__(logging.WARNING)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        self._view.warn(record.getMessage())


def _bar(console: Console, width: int) -> Progress:
    text = TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[step]}", markup=False, table_column=Column(min_width=width)),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        text,
    )
    return Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        refresh_per_second=REFRESHES_PER_SECOND,
    )
