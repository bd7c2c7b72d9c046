"""Output of the command line: tables for people, JSON lists for programs.

Rich interprets square brackets in a string as markup and `:name:` as an emoji. Output contains names, paths and
sentences from users, so every console is created here with both disabled; for a style, use `rich.text.Text`.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

FILE_WIDTH = 110

VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Also print the log of the run, which is written to a file.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")]


def console(stream: TextIO | None = None) -> Console:
    """Return the console for results, on standard output unless a stream is given."""
    is_terminal = (stream or sys.stdout).isatty()
    return _console(file=stream, width=None if is_terminal else FILE_WIDTH)


def stderr_console(stream: TextIO | None = None) -> Console:
    """Return the console for messages, separate from results: on standard error unless a stream is given."""
    return _console(file=stream, stderr=stream is None, width=None)


def _console(**options: Any) -> Console:
    return Console(**options, highlight=False, markup=False, emoji=False)


def status(text: str, console: Console | None = None) -> Status:
    """Show a text and a spinner while a block runs."""
    return (console or stderr_console()).status(Text(text))  # a spinner reads any string as markup


def silence_logs() -> None:
    """Disable log lines and progress bars of ZenML and MLflow; call it before they are imported."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("ZENML_LOGGING_VERBOSITY", "WARN")


def print_rows(
    title: str, rows: Iterable[Mapping[str, Any]], columns: Iterable[str], *, as_json: bool, empty: str
) -> None:
    """Print rows: all fields as JSON, or some columns as a table; `empty` is printed where there are no rows."""
    rows = list(rows)
    if as_json:
        typer.echo(json.dumps(rows, indent=1, default=str))
        return
    if not rows:
        console().print(empty)
        return
    table = Table(title=title, title_justify="left")
    names = list(columns)
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
