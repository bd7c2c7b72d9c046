"""How the command line shows things: tables for people, JSON lists for programs.

Rich takes square brackets in a string as markup and `:name:` as an emoji. What is shown holds names, paths and
sentences of the user's, so every console is made here, where both are off; whoever wants a style uses `rich.text.Text`.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

FILE_WIDTH = 110

JsonOption = Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")]


def console() -> Console:
    """Return the console for results."""
    return _console(stderr=False, width=None if sys.stdout.isatty() else FILE_WIDTH)


def stderr_console() -> Console:
    """Return the console for what is said beside results."""
    return _console(stderr=True, width=None)


def _console(*, stderr: bool, width: int | None) -> Console:
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def status(text: str) -> Status:
    """Show a text and a sign of life for the time of a block."""
    return stderr_console().status(Text(text))  # a spinner reads any string as markup, whatever its console does


def silence_logs() -> None:
    """Hold back log lines and progress bars, which would stand between results; call it before ZenML is imported."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("ZENML_LOGGING_VERBOSITY", "WARN")


def print_rows(
    title: str, found: Iterable[Mapping[str, Any]], columns: Iterable[str], *, as_json: bool, empty: str
) -> None:
    """Show rows: all of their fields as JSON, or some columns as a table."""
    found = list(found)
    if as_json:
        typer.echo(json.dumps(found, indent=1, default=str))
        return
    if not found:
        console().print(empty)
        return
    table = Table(title=title, title_justify="left")
    names = list(columns)
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in found:
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
