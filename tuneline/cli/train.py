"""`tuneline plan` and `tuneline run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tuneline.cli import imports, models, show
from tuneline.config import existence, run_config
from tuneline.errors import NotFoundError

if TYPE_CHECKING:
    from tuneline.runner.start import ExportOutcome, Outcome

ConfigFile = Annotated[Path, typer.Argument(help="Run configuration, like configs/demo.yaml, or one of LlamaFactory.")]


def add_commands(app: typer.Typer) -> None:
    """File the commands."""
    app.command()(plan)
    app.command()(run)


def plan(
    config: ConfigFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print the resolved recipe as JSON.")] = False,
) -> None:
    """Check a recipe and show it with every default filled in; computes nothing."""
    import yaml

    checked = _checked(config)
    if as_json:
        typer.echo(checked.recipe.model_dump_json(indent=1))
        return
    typer.echo(yaml.safe_dump({"recipe": checked.recipe.model_dump(mode="json")}, sort_keys=False).rstrip())
    show.console().print(
        f"\n{config} is valid: {checked.pipeline}, {len(checked.recipe.step_names())} steps.", soft_wrap=True
    )


def run(
    config: ConfigFile,
    cache: Annotated[bool, typer.Option(help="Take finished steps from the cache.")] = True,
    recompute: Annotated[
        list[str] | None, typer.Option(help="A step not to take from the cache; can be given several times.")
    ] = None,
) -> None:
    """Check a recipe, its data and the stack, then run it; makes the embedded stack where none was chosen yet."""
    checked = imports.ensure_config_file(_checked(config))
    _check_steps(checked, recompute or [])
    with show.status(f"Checking {config}") as shown:
        from tuneline.runner import preflight, start
        from tuneline.zenml_integration import abandoned_runs, stack

        if not stack.is_ready():
            shown.console.print(f"No stack was chosen in this folder: made {stack.init()} (tuneline init).")
        abandoned_runs.close()
        preflight.check_content(checked.recipe)
    outcome = start.start(checked, use_cache=cache, recompute=recompute or [])
    if outcome is None:
        show.console().print("The schedule is recorded. `tuneline scheduler` fires it; `tuneline schedule` lists it.")
    elif isinstance(outcome, start.ExportOutcome):
        show_export(outcome)
    else:
        _show_outcome(outcome)


def show_export(outcome: "Exported") -> None:
    """Show what an export left."""
    console, delivery = show.console(), outcome.delivery
    console.print(_steps_table(outcome))
    console.print(f"Weights  {delivery.facts['weights']}, {delivery.facts['dtype']}", soft_wrap=True)
    if "kl" in delivery.facts:
        console.print(f"Same     KL {delivery.facts['kl']:.1e} nats a token against the model before", soft_wrap=True)
    console.print(f"Ollama   {delivery.modelfile}", soft_wrap=True)
    console.print(f"Folder   {delivery.to or delivery.folder}", soft_wrap=True)
    if delivery.commit:
        console.print(f"Pushed   {delivery.repo_id} at commit {delivery.commit}: {delivery.url}", soft_wrap=True)


def _checked(config: Path) -> run_config.RunConfig:
    """Load a recipe and look for its files.

    Raises:
        TunelineError: One line for each mistake.
    """
    checked = imports.read_config(config)
    existence.check(checked.recipe)
    return checked


def _check_steps(checked: run_config.RunConfig, names: list[str]) -> None:
    """Check that a recipe has the steps that are to be computed again.

    Raises:
        NotFoundError: It has not.
    """
    known = checked.recipe.step_names()
    for name in names:
        if name not in known:
            raise NotFoundError.among("step", name, known)


def _show_outcome(outcome: "Outcome") -> None:
    console, decision = show.console(), outcome.decision
    if all(step.status == "cached" for step in outcome.steps if step.name not in ("resolve", "register")):
        console.print("\nNothing has changed: every step between resolve and register was cached.")
    console.print(_steps_table(outcome))
    console.print(_metrics_table(outcome))
    aliases = f" ({', '.join(decision.aliases)})" if decision.aliases else ""
    state = "new" if decision.new else "known already, registered once"
    console.print(f"Model    {decision.model_name} version {decision.version}{aliases}, {state}", soft_wrap=True)
    if len(decision.findings) > 1 or any(not check.passed for check in decision.checks):
        models.print_findings(decision)
    console.print(f"Gate     {decision.sentence}", soft_wrap=True)
    console.print(f"Weights  {outcome.model_folder}", soft_wrap=True)
    console.print(
        f"Next     tuneline ui | tuneline models | tuneline history | tuneline compare {outcome.run_name} "
        "<another run>",
        soft_wrap=True,
    )


def _steps_table(outcome: "Outcome | Exported") -> Table:
    table = Table(title=f"{outcome.pipeline}: {outcome.run_name}", title_justify="left")
    for name in ("step", "status", "seconds"):
        table.add_column(name, justify="right" if name == "seconds" else "left")
    for step in outcome.steps:
        seconds = "" if step.status == "cached" else f"{step.seconds:.1f}"
        table.add_row(step.name, "cached" if step.status == "cached" else "ran", seconds)
    return table


def _metrics_table(outcome: "Outcome") -> Table:
    from tuneline.evaluation.report import format_cells

    table = Table(title="Before and after, with 95 % intervals", title_justify="left")
    for name in ("metric", "items", "base model", "new model", "gain"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, parts in outcome.report.metrics().items():
        table.add_row(name, str(parts["model"].num_items), *format_cells(name, parts))
    return table
