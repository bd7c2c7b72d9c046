"""`tuneline runs` and `tuneline compare`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tuneline.cli import show


def add_commands(app: typer.Typer) -> None:
    """File the commands."""
    app.command()(runs)
    app.command()(compare)


def runs(
    as_json: show.JsonOption = False, limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20
) -> None:
    """List pipeline runs: what ran, what was cached, how long it took."""
    show.silence_logs()
    from tuneline.runner import runs as known
    from tuneline.zenml_integration import abandoned_runs, stack

    if stack.is_ready():
        abandoned_runs.close()
    columns = ("name", "pipeline", "status", "started", "seconds", "steps_run", "steps_cached")
    show.print_rows(
        "Runs", known.latest(limit), columns, as_json=as_json, empty="No run yet. Start one: tuneline run FILE"
    )


def compare(
    names: Annotated[
        list[str],
        typer.Argument(help="Names or ids of pipeline runs, or models like demo@champion; the first is the measure."),
    ],
    html: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("comparison.html"),
) -> None:
    """Compare runs: parameters that differ, metrics, paired gains, items won and lost, loss curves; text and HTML."""
    show.silence_logs()
    from tuneline.tracking import compare as comparing
    from tuneline.tracking import html_reports
    from tuneline.zenml_integration import tracker

    tracker.connect()
    found = comparing.compare(names)
    console = show.console()
    titles = [f"{chr(65 + i)}  {name}" for i, name in enumerate(found.names)]
    console.print("\n".join(titles), soft_wrap=True)
    for title, rows in (
        ("Parameters that differ", found.params),
        ("Scores, with 95 % intervals", found.metrics),
        ("Paired gain over A; * is no luck, at 95 % for all stars together (Holm)", found.gains),
        ("Items won, lost, equal against A", found.wins),
        ("Training loss (nats a token), mean over each fifth of the steps", found.losses()),
        (f"Other figures that differ; {found.num_equal} are equal", found.figures),
    ):
        if rows:
            console.print(title, soft_wrap=True)
            table = Table("", *(title[0] for title in titles))
            for key, values in rows.items():
                table.add_row(key, *(str(value) if value is not None else "" for value in values))
            console.print(table)
    _print_examples(found.examples, dict(zip(found.names, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", strict=False)), console)
    html.write_text(html_reports.comparison_page(found))
    console.print(f"These tables, the items that changed most and the loss curves: {html}", soft_wrap=True)


NUM_SHOWN = 2
"""Items shown in the terminal, of those that gained most and of those that lost most; the page has more."""


def _print_examples(examples: list[dict[str, str]], letters: dict[str, str], console: Console) -> None:
    """Show the items that moved most of the first metric in which any did, run by run."""
    from tuneline.tracking import text_summary

    for run, letter in letters.items():
        of_run = [each for each in examples if each["run"] == run]
        shown = [each for each in of_run if each["metric"] == of_run[0]["metric"]]
        won = [each for each in shown if each["change"] == "won"][:NUM_SHOWN]
        lost = [each for each in shown if each["change"] == "lost"][-NUM_SHOWN:]
        if not shown:
            continue
        console.print(f"Items that changed most in {shown[0]['metric']}, A to {letter}")
        for each in [*won, *lost]:
            console.print(f"  {each['change']}  {each['scores']}", highlight=False)
            console.print(
                f"    asked  {text_summary.summarize_prompt(each['prompt'])}",
                soft_wrap=True,
                markup=False,
                highlight=False,
            )
            for who, text in (("A", each["first"]), (letter, each["this"])):
                line = f"    {who}      {text_summary.summarize_answer(text)}"
                console.print(line, soft_wrap=True, markup=False, highlight=False)
