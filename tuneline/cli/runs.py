"""`tuneline runs` and `tuneline compare`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tuneline.cli import show


def add_to(app: typer.Typer) -> None:
    """File the commands."""
    app.command()(runs)
    app.command()(compare)


def runs(
    as_json: show.AsJson = False, limit: Annotated[int, typer.Option(help="How many, newest first.")] = 20
) -> None:
    """List pipeline runs: what ran, what was cached, how long it took."""
    show.quiet()
    from tuneline.workflow import runs as known

    columns = ("name", "pipeline", "status", "started", "seconds", "steps_run", "steps_cached")
    show.rows("Runs", known.latest(limit), columns, as_json=as_json, empty="No run yet. Start one: tuneline run FILE")


def compare(
    names: Annotated[
        list[str],
        typer.Argument(help="Names or ids of pipeline runs, or models like demo@champion; the first is the measure."),
    ],
    html: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("comparison.html"),
) -> None:
    """Compare runs: parameters that differ, metrics, paired gains, items won and lost, loss curves; text and HTML."""
    show.quiet()
    from tuneline.tracking import compare as comparing
    from tuneline.workflow import tracker

    tracker.connect()
    found = comparing.compare(names)
    console = show.console()
    for title, rows in (
        ("Parameters that differ", found.params),
        ("Metrics, with 95 % intervals", found.metrics),
        ("Paired gain over the first run; * is no luck, at 95 % for all stars together (Holm)", found.gains),
        ("Items won, lost, equal against the first run", found.wins),
    ):
        if rows:
            table = Table("", *found.names, title=title, title_justify="left")
            for key, values in rows.items():
                table.add_row(key, *(str(value) if value is not None else "" for value in values))
            console.print(table)
    html.write_text(found.to_html())
    console.print(f"These tables, the items that changed most and the loss curves: {html}", soft_wrap=True)
