"""`tuneline sweep`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tuneline.cli import show
from tuneline.config import sweep as sweeps
from tuneline.errors import RecipeError

if TYPE_CHECKING:
    from tuneline.workflow.start import Outcome


def add_to(app: typer.Typer) -> None:
    """File the command."""
    app.command()(sweep)


def sweep(
    config: Annotated[Path, typer.Argument(help="Run configuration, like configs/demo.yaml.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value,value; give it once a key.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each setting, whose spread is the noise.")] = 3,
) -> None:
    """Run a recipe at several values, each with several seeds, and tell real differences from noise."""
    if seeds < 1:
        raise RecipeError(f"--seeds {seeds}: a setting needs one run at least, and two to tell its noise.")
    settings = sweeps.settings(config, set_ or [], seeds)
    from tuneline.tracking.sweep import shown_band
    from tuneline.workflow import sweeps as running

    console = show.console()
    total, done = sum(len(setting.runs) for setting in settings), 0

    def told(name: str, outcome: "Outcome") -> None:
        nonlocal done
        done += 1
        cached = sum(step.status == "cached" for step in outcome.steps)
        console.print(f"{done} of {total}: {name}: {cached} of {len(outcome.steps)} steps from the cache")

    found = running.run(f"sweep of {config.stem}", settings, told)
    table = Table(title=f"{found.metric} over {seeds} seeds", title_justify="left")
    for column in ("setting", found.metric, "noise band", "against the best"):
        table.add_column(column)
    for line in found.lines:
        table.add_row(line.name, f"{line.mean:.4f}", shown_band(line), line.differs)
    console.print(table)
    console.print(f"MLflow   run {found.run_id}: sweep.html, and the runs as its children", soft_wrap=True)
