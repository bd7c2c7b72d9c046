"""`tuneline models`, `promote`, `rollback` and `history`."""

from typing import Annotated

import typer

from tuneline.cli import show

Name = Annotated[str, typer.Argument(help="Registered model.")]


def add_to(app: typer.Typer) -> None:
    """File the commands."""
    for command in (models, promote, rollback, history):
        app.command()(command)


def models(
    name: Annotated[str | None, typer.Argument(help="One registered model; all without it.")] = None,
    as_json: show.AsJson = False,
) -> None:
    """List registered versions, one a row, with their aliases."""
    show.quiet()
    from tuneline.tracking import registry
    from tuneline.workflow import tracker

    tracker.connect()
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
        for version in registry.versions(name)
    ]
    columns = ("name", "version", "aliases", "run", "content_hash")
    show.rows(
        "Models", found, columns, as_json=as_json, empty="No model is registered yet. Make one: tuneline run FILE"
    )


def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="Version number or alias.")] = "challenger",
    force: Annotated[bool, typer.Option(help="Skip the gate; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Why; it stands in the ledger.")] = "",
) -> None:
    """Put a version before the gate again, on the stored scores; a pass makes it champion."""
    show.quiet()
    from tuneline.tracking import promotion, stored
    from tuneline.workflow import tracker

    tracker.connect()
    if force:
        if not reason:
            raise typer.BadParameter("--force needs --reason, which stands in the ledger.")
        promoted = promotion.force(name, version, reason)
        show.console().print(f"{name} version {promoted.version} is champion, by force: {reason}")
        return
    decision = stored.promote(name, version)
    show.console().print(f"{name} version {decision.version}: {decision.sentence}", soft_wrap=True)
    if not decision.promoted and "champion" not in decision.aliases:
        raise typer.Exit(1)


def rollback(
    name: Name, reason: Annotated[str, typer.Option(help="Why; it stands in the ledger.")] = "rolled back"
) -> None:
    """Give the alias champion back to the previous one."""
    show.quiet()
    from tuneline.tracking import promotion
    from tuneline.workflow import tracker

    tracker.connect()
    champion = promotion.rollback(name, reason)
    state = f"{name} version {champion.version} is champion again." if champion else f"{name} has no champion now."
    show.console().print(state)


def history(
    name: Annotated[str | None, typer.Argument(help="One registered model; all without it.")] = None,
    as_json: show.AsJson = False,
    verify: Annotated[bool, typer.Option(help="Check that no line was changed.")] = False,
) -> None:
    """Show the ledger: every move of an alias, oldest first."""
    from tuneline.tracking import ledger

    if verify:
        count = ledger.verify()
        show.console().print(f"The ledger is whole: {count} lines.")
        return
    columns = ("when", "who", "model", "alias", "from", "to", "why")
    show.rows("Promotions", ledger.entries(name), columns, as_json=as_json, empty="No alias has moved yet.")
