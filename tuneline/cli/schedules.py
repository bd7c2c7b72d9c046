"""`tuneline schedule` and `tuneline scheduler`."""

from pathlib import Path
from typing import Annotated

import typer

from tuneline.cli import show
from tuneline.errors import RecipeError


def add_commands(app: typer.Typer) -> None:
    """File the commands."""
    app.command()(schedule)
    app.command()(scheduler)


def schedule(
    config: Annotated[Path | None, typer.Argument(help="Run configuration with `schedule:`; without it, list.")] = None,
    pause: Annotated[str | None, typer.Option(help="Name of a schedule to pause.")] = None,
    resume: Annotated[str | None, typer.Option(help="Name of a paused schedule.")] = None,
    delete: Annotated[str | None, typer.Option(help="Name of a schedule to forget.")] = None,
    as_json: show.JsonOption = False,
) -> None:
    """Record a schedule from a run configuration, list schedules, or pause, resume and delete one."""
    show.silence_logs()
    from tuneline.zenml_integration import schedules

    if config:
        _record(config)
    if pause:
        schedules.set_active(pause, active=False)
    if resume:
        schedules.set_active(resume, active=True)
    if delete:
        schedules.delete(delete)
    from tuneline.runner import scheduler_state

    memory = scheduler_state.load(lambda line: typer.echo(line, err=True))
    found = [each.row() | scheduler_state.row(memory.get(each.id)) for each in schedules.list_schedules()]
    columns = ("name", "cron_expression", "active", "last_due", "last_status", "last_log")
    show.print_rows(
        "Schedules (UTC)", found, columns, as_json=as_json, empty="No schedule. Record one: tuneline schedule FILE"
    )


def _record(config: Path) -> None:
    from tuneline.config import existence, load
    from tuneline.runner import start
    from tuneline.zenml_integration import schedules, stack

    checked = load.load(config)
    existence.check(checked.recipe)
    wanted = checked.content.get("schedule")
    if not wanted:
        raise RecipeError(f"{config}: schedule: is required to be scheduled. Add it with a cron_expression.")
    if not stack.is_ready():
        stack.init()
    if wanted.get("name") in {known.name for known in schedules.list_schedules()}:
        schedules.delete(wanted["name"])
    start.start(checked)


def scheduler(
    poll_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the clock.")] = 10.0,
    max_firings: Annotated[int | None, typer.Option(min=1, help="Stop after this many runs; default: never.")] = None,
    once: Annotated[bool, typer.Option(help="Look once and end, as from a system timer.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side; never two of one schedule.")] = 2,
    limit_hours: Annotated[
        float, typer.Option(min=0.0001, help="Time limit of a run; then it saves its state, ends and has failed.")
    ] = 72.0,
) -> None:
    """Fire due schedules of this folder's stack, each in a fresh process, until stopped; its runs end with it."""
    show.silence_logs()
    from tuneline.runner import scheduler as engine
    from tuneline.zenml_integration import abandoned_runs
    from tuneline.zenml_integration.schedules import list_schedules

    abandoned_runs.close()
    console = show.console()
    watching = engine.Scheduler(
        list_schedules,
        tell=lambda line: console.print(line, soft_wrap=True, markup=False),
        max_jobs=jobs,
        limit_seconds=limit_hours * 3600,
    )
    if once:
        fired = watching.once()
    else:
        console.print(f"Watching {len(list_schedules())} schedules, every {poll_seconds:g} s; stop with Ctrl-C.")
        fired = watching.run(poll_seconds, max_firings)
    if any(firing.exit_code for firing in fired):
        raise typer.Exit(1)
