"""`tuneline runs` and `tuneline compare`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tuneline.cli import show


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(runs)
    app.command()(compare)


def runs(
    as_json: show.JsonOption = False,
    limit: Annotated[int, typer.Option(min=1, help="Number of runs, newest first.")] = 20,
) -> None:
    """List pipeline runs with their status, duration and number of cached steps."""
    show.silence_logs()
    from tuneline.runner import listings

    columns = ("name", "pipeline", "status", "started", "seconds", "steps_run", "steps_cached")
    show.print_rows(
        "Runs", listings.runs(limit), columns, as_json=as_json, empty="No runs. Start one: tuneline run FILE"
    )


def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Names or ids of pipeline runs, or models such as demo@champion; the first is the reference."
        ),
    ],
    html: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("comparison.html"),
) -> None:
    """Compare runs: differing parameters, metrics, paired gains, items won and lost, and loss curves."""
    show.silence_logs()
    from tuneline.tracking import compare as comparing
    from tuneline.tracking import html_reports
    from tuneline.zenml_integration import tracker

    tracker.connect()
    comparison = comparing.compare(names)
    console = show.console()
    titles = [f"{chr(65 + i)}  {name}" for i, name in enumerate(comparison.names)]
    console.print("\n".join(titles), soft_wrap=True)
    for title, rows in (
        ("Parameters that differ", comparison.params),
        ("Scores, with 95 % intervals", comparison.metrics),
        ("Paired gain over A; * marks significance at 95 % for all comparisons together (Holm)", comparison.gains),
        ("Items won, lost, equal against A", comparison.wins),
        ("Training loss (nats per token), mean over each fifth of the steps", comparison.losses()),
        (f"Other values that differ; {comparison.num_equal} are equal", comparison.figures),
    ):
        if rows:
            console.print(title, soft_wrap=True)
            table = Table("", *(title[0] for title in titles))
            for key, values in rows.items():
                table.add_row(key, *(str(value) if value is not None else "" for value in values))
            console.print(table)
    _print_examples(
        comparison.examples, dict(zip(comparison.names, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", strict=False)), console
    )
    html.write_text(html_reports.comparison_page(comparison))
    console.print(f"Page with these tables, example items and loss curves: {html}", soft_wrap=True)


NUM_SHOWN = 2
"""Number of items printed per run with the largest gain, and with the largest loss; the page has more."""


def _print_examples(examples: list[dict[str, str]], letters: dict[str, str], console: Console) -> None:
    """Print the items with the largest change for each run, in the first metric that has any."""
    from tuneline.tracking import text_summary

    for run, letter in letters.items():
        of_run = [item for item in examples if item["run"] == run]
        shown = [item for item in of_run if item["metric"] == of_run[0]["metric"]]
        won = [item for item in shown if item["change"] == "won"][:NUM_SHOWN]
        lost = [item for item in shown if item["change"] == "lost"][-NUM_SHOWN:]
        if not shown:
            continue
        console.print(f"Items that changed most in {shown[0]['metric']}, A to {letter}")
        for item in [*won, *lost]:
            console.print(f"  {item['change']}  {item['scores']}", highlight=False)
            console.print(
                f"    prompt {text_summary.summarize_prompt(item['prompt'])}",
                soft_wrap=True,
                markup=False,
                highlight=False,
            )
            for who, text in (("A", item["first"]), (letter, item["this"])):
                line = f"    {who}      {text_summary.summarize_answer(text)}"
                console.print(line, soft_wrap=True, markup=False, highlight=False)
