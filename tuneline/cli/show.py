"""How the command line shows things: tables for people, JSON lists for programs."""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

WIDTH_OF_FILES = 110

AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")]


def console() -> Console:
    """Return the console for results."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_OF_FILES)


def quiet() -> None:
    """Hold back log lines and progress bars, which would stand between results; call it before ZenML is imported."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("ZENML_LOGGING_VERBOSITY", "WARN")


def rows(title: str, found: Iterable[Mapping[str, Any]], columns: Iterable[str], *, as_json: bool, empty: str) -> None:
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
