"""`tuneline paper-tables`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tuneline.cli import show
from tuneline.errors import RecipeError

if TYPE_CHECKING:
    from tuneline.tracking.experiments.paper_cell import CellResult

ListOption = list[str] | None
Budget = Literal["tiny", "small", "paper"]
"""As in `tuneline.config.experiments.paper_tables`, which takes long to import."""


def add_commands(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(paper_tables)


def paper_tables(
    budget: Annotated[Budget, typer.Option(help="Training size: tiny, small, or paper, the size of the paper.")],
    output: Annotated[Path, typer.Option(help="Folder for the report, its JSON file and the logs.")] = Path(
        "paper-tables"
    ),
    model: Annotated[
        str | None,
        typer.Option(help="Folder, catalogue name or owner/name of the base model; default: the model of the budget."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with pubmed, cnn_dm, xsum and adgen as files; default: the Hub.")
    ] = None,
    source: Annotated[
        ListOption, typer.Option(help="TASK=FILE, such as xsum=rows.jsonl; repeat it for each task.")
    ] = None,
    task: Annotated[
        ListOption, typer.Option(help="pubmed, cnn_dm, xsum or adgen; repeat it for each task. Default: all.")
    ] = None,
    method: Annotated[
        ListOption, typer.Option(help="full, freeze, galore, lora or qlora; repeat it for each method. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every training.")] = 0,
    compat: Annotated[
        bool, typer.Option(help="Also score answers with the ROUGE of LlamaFactory, as the paper did.")
    ] = False,
) -> None:
    """Reproduce the two tables of the LlamaFactory paper (memory, speed and perplexity; ROUGE) next to its numbers."""
    if output.exists() and not output.is_dir():
        raise RecipeError(f"--output {output} is a file, expected a folder. Choose another --output.")
    from tuneline.config.experiments import paper_tables as tables

    sources = tables.find_sources(data) if data else {}
    sources |= dict(tables.parse_source(text) for text in source or [])
    options = tables.TableOptions(budget, model, sources, tuple(task or ()), tuple(method or ()), seed, compat)
    cells = tables.build_cells(options)
    show.silence_logs()
    from tuneline.runner import paper_tables as runner
    from tuneline.tracking.experiments import paper_report
    from tuneline.tracking.experiments import paper_tables as lines
    from tuneline.zenml_integration import stack

    console = show.console()
    if not stack.is_ready():
        console.print(f"No stack is active in this folder: created {stack.init()} (tuneline init).")
    runner.check(cells)

    def report(results: "list[CellResult]", number: int) -> None:
        paper_report.write(output, options, results)
        console.print(f"{number + 1} of {len(results)}: {lines.summary_line(results[number])}", soft_wrap=True)

    results = runner.run(cells, output / "logs", report)
    console.print(f"Tables: {output / paper_report.HTML} and {paper_report.MARKDOWN}; values: {paper_report.FIGURES}")
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)
