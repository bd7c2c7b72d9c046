"""`tuneline models`, `card`, `promote`, `rollback` and `history`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tuneline.cli import show
from tuneline.errors import TunelineError

if TYPE_CHECKING:
    from tuneline.tracking.decision import Decision

NUM_SHOWN = 50
"""Rows of the table of versions."""

Name = Annotated[str, typer.Argument(help="Name of a registered model.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (models, card, promote, rollback, history):
        app.command()(command)


def models(
    name: Annotated[str | None, typer.Argument(help="Name of a registered model; default: all.")] = None,
    as_json: show.JsonOption = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=f"Number of newest versions.  [default: {NUM_SHOWN} in the table, all as JSON]"),
    ] = None,
) -> None:
    """List registered versions with their aliases: the newest, and all that have an alias."""
    show.silence_logs()
    from tuneline.runner import listings

    most = limit or (None if as_json else NUM_SHOWN)
    versions, num_omitted = listings.models(name, most)
    rows = [
        {
            "name": version.name,
            "version": version.version,
            "aliases": list(version.aliases),
            "run": version.tags.get("zenml.run"),
            "content_hash": version.content_hash,
            "folder": f"{version.source}/files",
            "mlflow_run_id": version.run_id,
            "tags": version.tags,
        }
        for version in versions
    ]
    columns = ("name", "version", "aliases", "run", "content_hash")
    show.print_rows(
        "Models", rows, columns, as_json=as_json, empty="No model is registered. Train one: tuneline run FILE"
    )
    if num_omitted and not as_json:
        show.console().print(
            f"Showing the newest {most} versions and those with an alias; see --limit and --json for more."
        )


def card(name: Name, version: Annotated[str, typer.Argument(help="Version number or alias.")] = "champion") -> None:
    """Print the model card of a version: data, method, scores, license and limitations."""
    show.silence_logs()
    from tuneline.runner import listings

    typer.echo(listings.card(name, version))


def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="Version number or alias.")] = "challenger",
    force: Annotated[bool, typer.Option(help="Skip the gate; requires --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Reason, which is recorded in the ledger.")] = "",
    gate: Annotated[Path | None, typer.Option(help="Gate file that replaces the gate of the recipe.")] = None,
) -> None:
    """Evaluate the gate again on the stored scores of a version, and promote it to champion if it passes."""
    show.silence_logs()
    from tuneline.config.parsing import gate_file
    from tuneline.config.sections.gate import GateConfig
    from tuneline.tracking import promotion, run_artifacts
    from tuneline.zenml_integration import model_versions, tracker

    if force and gate:
        raise TunelineError("--force skips the gate, so --gate has no effect. Remove one of them.")
    config = GateConfig.model_validate(gate_file.read(gate)) if gate else None
    tracker.connect()
    if force:
        if not reason:
            raise TunelineError("--force requires --reason, which is recorded in the ledger. Add --reason TEXT.")
        promoted = promotion.force(name, version, reason)
        model_versions.mirror(name)
        show.console().print(f"{name} version {promoted.version} is champion (forced): {reason}")
        return
    decision = run_artifacts.promote(name, version, config)
    model_versions.mirror(name, decision)
    print_findings(decision)
    show.console().print(f"{name} version {decision.version}: {decision.sentence}", soft_wrap=True)
    if not decision.promoted and "champion" not in decision.aliases:
        raise typer.Exit(1)


def print_findings(decision: "Decision") -> None:
    """Print the findings of a gate: one row per comparison, and the preconditions that fail."""
    from tuneline.tracking.decision import COLUMNS

    if not decision.findings:
        return
    table = Table(title="Gate comparisons", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for row in decision.table():
        table.add_row(*row.values())
    show.console().print(table)
    for check in decision.checks:
        if not check.passed:
            show.console().print(f"Precondition {check.name} fails: {check.sentence}", soft_wrap=True)


def rollback(
    name: Name, reason: Annotated[str, typer.Option(help="Reason, which is recorded in the ledger.")] = "rolled back"
) -> None:
    """Move the alias champion back to the previous version."""
    show.silence_logs()
    from tuneline.tracking import promotion
    from tuneline.zenml_integration import model_versions, tracker

    tracker.connect()
    champion = promotion.rollback(name, reason)
    model_versions.mirror(name)
    message = f"{name} version {champion.version} is champion again." if champion else f"{name} has no champion."
    show.console().print(message)


def history(
    name: Annotated[str | None, typer.Argument(help="Name of a registered model; default: all.")] = None,
    as_json: show.JsonOption = False,
    verify: Annotated[
        bool, typer.Option(help="Verify the hashes of all lines, and compare them with the registry.")
    ] = False,
) -> None:
    """Show the ledger: every change of an alias, oldest first."""
    from tuneline.tracking import ledger

    if verify:
        show.silence_logs()
        from tuneline.tracking import promotion
        from tuneline.zenml_integration import tracker

        tracker.connect()
        count = promotion.verify()
        show.console().print(f"The ledger is intact and agrees with the registry: {count} lines.")
        return
    columns = ("when", "who", "model", "alias", "from", "to", "why")
    show.print_rows("Alias changes", ledger.entries(name), columns, as_json=as_json, empty="No alias has changed.")
