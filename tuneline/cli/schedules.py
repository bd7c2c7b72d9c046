"""`tuneline schedule` and `tuneline scheduler`."""

from pathlib import Path
from typing import Annotated

import typer

from tuneline.cli import show
from tuneline.errors import RecipeError


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(schedule)
    app.command()(scheduler)


def schedule(
    config: Annotated[
        Path | None, typer.Argument(help="Run configuration with `schedule:`; without one, list the schedules.")
    ] = None,
    pause: Annotated[str | None, typer.Option(help="Name of a schedule to pause.")] = None,
    resume: Annotated[str | None, typer.Option(help="Name of a paused schedule to resume.")] = None,
    delete: Annotated[str | None, typer.Option(help="Name of a schedule to delete.")] = None,
    as_json: show.JsonOption = False,
) -> None:
    """Record the schedule of a run configuration, list schedules, or pause, resume or delete one."""
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
    from tuneline.runner import listings, scheduler_state

    states = scheduler_state.load(lambda line: typer.echo(line, err=True))
    rows = [item.row() | scheduler_state.row(states.get(item.id)) for item in listings.list_schedules()]
    columns = ("name", "cron_expression", "active", "last_due", "last_status", "last_log")
    show.print_rows(
        "Schedules (UTC)", rows, columns, as_json=as_json, empty="No schedules. Record one: tuneline schedule FILE"
    )


def _record(config: Path) -> None:
    from tuneline.config import existence, load
    from tuneline.runner import start
    from tuneline.zenml_integration import schedules, stack

    checked = load.load(config)
    existence.check(checked.recipe)
    section = checked.content.get("schedule")
    if not section:
        raise RecipeError(f"{config}: schedule: missing. Add it, with a cron_expression.")
    if not stack.is_ready():
        stack.init()
    if section.get("name") in {item.name for item in schedules.list_schedules()}:
        schedules.delete(section["name"])
    start.start(checked)


def scheduler(
    poll_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds between two checks for due schedules.")] = 10.0,
    max_firings: Annotated[
        int | None, typer.Option(min=1, help="Stop after this number of runs; default: never.")
    ] = None,
    once: Annotated[bool, typer.Option(help="Start what is due, wait for it, and exit; for a system timer.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Maximum number of parallel runs; one per schedule.")] = 2,
    limit_hours: Annotated[
        float, typer.Option(min=0.0001, help="Time limit of a run, which then saves its state and fails.")
    ] = 72.0,
) -> None:
    """Run due schedules of the active stack, each in a new process, until stopped; its runs stop with it."""
    show.silence_logs()
    from tuneline.runner.scheduler import Scheduler
    from tuneline.zenml_integration import abandoned_runs
    from tuneline.zenml_integration.schedules import list_schedules

    abandoned_runs.close()
    console = show.console()
    running = Scheduler(
        list_schedules,
        report=lambda line: console.print(line, soft_wrap=True, markup=False),
        max_jobs=jobs,
        limit_seconds=limit_hours * 3600,
    )
    if once:
        results = running.run_once()
    else:
        console.print(f"Checking {len(list_schedules())} schedules every {poll_seconds:g} s; stop with Ctrl-C.")
        results = running.run(poll_seconds, max_firings)
    if any(result.exit_code for result in results):
        raise typer.Exit(1)
