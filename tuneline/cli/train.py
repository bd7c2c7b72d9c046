"""`tuneline plan` and `tuneline run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tuneline.cli import imports, models, run_view, show
from tuneline.errors import NotFoundError

if TYPE_CHECKING:
    from tuneline.config.run_config import RunConfig
    from tuneline.runner.start import ExportOutcome, Outcome

ConfigFile = Annotated[
    Path, typer.Argument(help="Run configuration, such as configs/demo.yaml, or a LlamaFactory configuration.")
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(plan)
    app.command()(run)


def plan(
    config: ConfigFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print the resolved recipe as JSON.")] = False,
) -> None:
    """Validate a recipe and print it with all defaults; runs nothing."""
    import yaml

    checked = _load_and_check(config)
    if as_json:
        typer.echo(checked.recipe.model_dump_json(indent=1))
        return
    typer.echo(yaml.safe_dump({"recipe": checked.recipe.model_dump(mode="json")}, sort_keys=False).rstrip())
    show.console().print(
        f"\n{config} is valid: {checked.pipeline}, {len(checked.recipe.step_names())} steps.", soft_wrap=True
    )


def run(
    config: ConfigFile,
    cache: Annotated[bool, typer.Option(help="Reuse cached steps.")] = True,
    recompute: Annotated[
        list[str] | None, typer.Option(help="Name of a step to run again even if it is cached; can be repeated.")
    ] = None,
    verbose: show.VerboseOption = False,
) -> None:
    """Check a recipe, its data and the stack, then run it; creates the embedded stack if no stack is active."""
    checked = imports.ensure_config_file(_load_and_check(config))
    _check_steps(checked, recompute or [])
    with run_view.open_view(config.stem, checked.recipe.step_names(), verbose=verbose) as view:
        with view.spinner(f"Checking {config}"):
            from tuneline.runner import preflight, start
            from tuneline.zenml_integration import abandoned_runs, stack

            if not stack.is_ready():
                view.message(f"No stack is active in this folder: created {stack.init()} (tuneline init).")
            abandoned_runs.close()
            preflight.check_content(checked.recipe)
        outcome = start.start(checked, use_cache=cache, recompute=recompute or [])
    if outcome is None:
        show.console().print("The schedule is recorded. `tuneline scheduler` runs it; `tuneline schedule` lists it.")
    elif isinstance(outcome, start.ExportOutcome):
        _show_export(outcome)
    else:
        _show_outcome(outcome)


def _show_export(outcome: "ExportOutcome") -> None:
    """Show where an export is, and what it holds."""
    console, delivery = show.console(), outcome.delivery
    console.print(f"Weights  {delivery.facts['weights']}, {delivery.facts['dtype']}", soft_wrap=True)
    if "kl" in delivery.facts:
        console.print(
            f"Same     KL divergence from the source model: {delivery.facts['kl']:.1e} nats per token", soft_wrap=True
        )
    console.print(f"Ollama   {delivery.modelfile}", soft_wrap=True)
    console.print(f"Folder   {delivery.to or delivery.folder}", soft_wrap=True)
    if delivery.commit:
        console.print(f"Pushed   {delivery.repo_id} at commit {delivery.commit}: {delivery.url}", soft_wrap=True)
    console.print(f"Run      {outcome.run_name} ({outcome.pipeline})", soft_wrap=True)


def _load_and_check(config: Path) -> "RunConfig":
    """Load a recipe and check that its files exist.

    Raises:
        TunelineError: One line per error.
    """
    from tuneline.config import existence

    checked = imports.read_config(config)
    existence.check(checked.recipe)
    return checked


def _check_steps(checked: "RunConfig", names: list[str]) -> None:
    """Check that a recipe has the steps to recompute.

    Raises:
        NotFoundError: It lacks one.
    """
    known = checked.recipe.step_names()
    for name in names:
        if name not in known:
            raise NotFoundError.among("step", name, known)


def _show_outcome(outcome: "Outcome") -> None:
    console, decision = show.console(), outcome.decision
    if all(step.status == "cached" for step in outcome.steps if step.name not in ("resolve", "register")):
        console.print("Nothing has changed: every step between resolve and register was cached.")
    console.print(_metrics_table(outcome))
    aliases = f" ({', '.join(decision.aliases)})" if decision.aliases else ""
    state = "new" if decision.new else "already registered"
    console.print(f"Model    {decision.model_name} version {decision.version}{aliases}, {state}", soft_wrap=True)
    if len(decision.findings) > 1 or any(not check.passed for check in decision.checks):
        models.print_findings(decision)
    console.print(f"Gate     {decision.sentence}", soft_wrap=True)
    console.print(f"Weights  {outcome.model_folder}", soft_wrap=True)
    console.print(f"Run      {outcome.run_name} ({outcome.pipeline})", soft_wrap=True)
    console.print(
        f"Next     tuneline ui | tuneline models | tuneline history | tuneline compare {outcome.run_name} "
        "<another run>",
        soft_wrap=True,
    )


def _metrics_table(outcome: "Outcome") -> Table:
    from tuneline.evaluation.report import format_cells

    table = Table(title="Before and after, with 95 % intervals", title_justify="left")
    for name in ("metric", "items", "base model", "new model", "gain"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, parts in outcome.report.metrics().items():
        table.add_row(name, str(parts["model"].num_items), *format_cells(name, parts))
    return table
