"""`tuneline paper-tables`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneline.cli import show
from tuneline.config.experiments import paper_tables as tables
from tuneline.errors import RecipeError

if TYPE_CHECKING:
    from tuneline.tracking.experiments.paper_cell import CellResult

ListOption = list[str] | None


def add_commands(app: typer.Typer) -> None:
    """File the command."""
    app.command()(paper_tables)


def paper_tables(
    budget: Annotated[tables.Budget, typer.Option(help="How much is trained: tiny, small, or the paper's own size.")],
    output: Annotated[Path, typer.Option(help="Folder for the report, its figures and the logs.")] = Path(
        "paper-tables"
    ),
    model: Annotated[
        str | None, typer.Option(help="A folder, a name of the catalogue or owner/name; the budget's own if left out.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with pubmed, cnn_dm, xsum and adgen as files; the hub if left out.")
    ] = None,
    source: Annotated[ListOption, typer.Option(help="TASK=FILE, like xsum=rows.jsonl; give it once a task.")] = None,
    task: Annotated[
        ListOption, typer.Option(help="pubmed, cnn_dm, xsum or adgen; give it once a task. All if left out.")
    ] = None,
    method: Annotated[
        ListOption, typer.Option(help="full, freeze, galore, lora or qlora; give it once a method. All if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every training.")] = 0,
    compat: Annotated[
        bool, typer.Option(help="Also score answers with LlamaFactory's ROUGE, as in the paper.")
    ] = False,
) -> None:
    """Measure the two tables of LlamaFactory's paper: memory, speed, perplexity and ROUGE, next to its numbers."""
    if output.exists() and not output.is_dir():
        raise RecipeError(f"--output {output}: is a file, and a folder is wanted. Give another place.")
    sources = tables.find_sources(data) if data else {}
    sources |= dict(tables.parse_source(text) for text in source or [])
    asked = tables.TableOptions(budget, model, sources, tuple(task or ()), tuple(method or ()), seed, compat)
    cells = tables.build_cells(asked)
    show.silence_logs()
    from tuneline.runner import paper_tables as running
    from tuneline.tracking.experiments import paper_report
    from tuneline.tracking.experiments import paper_tables as lines
    from tuneline.zenml_integration import stack

    console = show.console()
    if not stack.is_ready():
        console.print(f"No stack was chosen in this folder: made {stack.init()} (tuneline init).")
    running.check(cells)

    def told(results: "list[CellResult]", number: int) -> None:
        paper_report.write(output, asked, results)
        console.print(f"{number + 1} of {len(results)}: {lines.summary_line(results[number])}", soft_wrap=True)

    results = running.run(cells, output / "logs", told)
    console.print(
        f"The tables: {output / paper_report.HTML} and {paper_report.MARKDOWN}; figures: {paper_report.FIGURES}"
    )
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)
