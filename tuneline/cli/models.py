"""`tuneline models`, `promote`, `rollback` and `history`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tuneline.cli import show
from tuneline.errors import NotFoundError, TunelineError

if TYPE_CHECKING:
    from tuneline.tracking.decision import Decision

NUM_SHOWN = 50
"""Rows of the table of versions."""

Name = Annotated[str, typer.Argument(help="Registered model.")]


def add_commands(app: typer.Typer) -> None:
    """File the commands."""
    for command in (models, card, promote, rollback, history):
        app.command()(command)


def models(
    name: Annotated[str | None, typer.Argument(help="One registered model; all without it.")] = None,
    as_json: show.JsonOption = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=f"How many of the newest.  [default: {NUM_SHOWN} in the table, all as JSON]"),
    ] = None,
) -> None:
    """List registered versions with their aliases: the newest, and those with an alias however old they are."""
    show.silence_logs()
    from tuneline.tracking import registry
    from tuneline.zenml_integration import tracker

    tracker.connect()
    if name and not registry.list_models(name):
        raise NotFoundError.among("model", name, list(registry.list_models())[: registry.MAX_LISTED])
    most = limit or (None if as_json else NUM_SHOWN)
    listed = registry.list_recent(name, most + 1) if most else registry.list_versions(name)
    left_out = [version for version in listed[most:] if not version.aliases] if most else []
    found = [
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
        for version in listed
        if version not in left_out
    ]
    columns = ("name", "version", "aliases", "run", "content_hash")
    show.print_rows(
        "Models", found, columns, as_json=as_json, empty="No model is registered yet. Make one: tuneline run FILE"
    )
    if left_out and not as_json:
        show.console().print(f"The newest {most} versions; older ones without an alias are left out (--limit, --json).")


def card(name: Name, version: Annotated[str, typer.Argument(help="Version number or alias.")] = "champion") -> None:
    """Print the model card of a version: data, method, scores, license and limits, as far as known."""
    show.silence_logs()
    from tuneline.tracking import registry, run_artifacts
    from tuneline.zenml_integration import tracker

    tracker.connect()
    typer.echo(run_artifacts.load_card(registry.find_version(name, version)))


def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="Version number or alias.")] = "challenger",
    force: Annotated[bool, typer.Option(help="Skip the gate; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Reason, recorded in the ledger.")] = "",
    gate: Annotated[Path | None, typer.Option(help="File of another gate than its recipe's.")] = None,
) -> None:
    """Put a version before the gate again, on the stored scores; a pass makes it champion."""
    show.silence_logs()
    from tuneline.config.parsing import gate_file
    from tuneline.config.sections.gate import GateConfig
    from tuneline.tracking import promotion, run_artifacts
    from tuneline.zenml_integration import model_versions, tracker

    if force and gate:
        raise TunelineError("--force asks no gate, so --gate would do nothing. Leave one of them out.")
    config = GateConfig.model_validate(gate_file.read(gate)) if gate else None
    tracker.connect()
    if force:
        if not reason:
            raise TunelineError("--force needs --reason, which is written into the ledger. Give --reason WHY.")
        promoted = promotion.force(name, version, reason)
        model_versions.mirror(name)
        show.console().print(f"{name} version {promoted.version} is champion, by force: {reason}")
        return
    decision = run_artifacts.promote(name, version, config)
    model_versions.mirror(name, decision)
    print_findings(decision)
    show.console().print(f"{name} version {decision.version}: {decision.sentence}", soft_wrap=True)
    if not decision.promoted and "champion" not in decision.aliases:
        raise typer.Exit(1)


def print_findings(decision: "Decision") -> None:
    """Show what a gate found: a row a comparison, and preconditions that do not hold."""
    from tuneline.tracking.decision import COLUMNS

    if not decision.findings:
        return
    table = Table(title="The gate's comparisons", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for row in decision.table():
        table.add_row(*row.values())
    show.console().print(table)
    for check in decision.checks:
        if not check.passed:
            show.console().print(f"Precondition {check.name} fails: {check.sentence}", soft_wrap=True)


def rollback(
    name: Name, reason: Annotated[str, typer.Option(help="Reason, recorded in the ledger.")] = "rolled back"
) -> None:
    """Give the alias champion back to the previous one."""
    show.silence_logs()
    from tuneline.tracking import promotion
    from tuneline.zenml_integration import model_versions, tracker

    tracker.connect()
    champion = promotion.rollback(name, reason)
    model_versions.mirror(name)
    state = f"{name} version {champion.version} is champion again." if champion else f"{name} has no champion now."
    show.console().print(state)


def history(
    name: Annotated[str | None, typer.Argument(help="One registered model; all without it.")] = None,
    as_json: show.JsonOption = False,
    verify: Annotated[bool, typer.Option(help="Check that no line was changed, and that the registry agrees.")] = False,
) -> None:
    """Show the ledger: every move of an alias, oldest first."""
    from tuneline.tracking import ledger

    if verify:
        show.silence_logs()
        from tuneline.tracking import promotion
        from tuneline.zenml_integration import tracker

        tracker.connect()
        count = promotion.verify()
        show.console().print(f"The ledger is whole, and the registry agrees: {count} lines.")
        return
    columns = ("when", "who", "model", "alias", "from", "to", "why")
    show.print_rows("Promotions", ledger.entries(name), columns, as_json=as_json, empty="No alias has moved yet.")
