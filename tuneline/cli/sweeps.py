"""`tuneline sweep`: lists of values, or a search in ranges."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tuneline.cli import show
from tuneline.config.experiments import search as searches
from tuneline.config.experiments import sweep as sweeps
from tuneline.errors import RecipeError

if TYPE_CHECKING:
    from tuneline.runner.start import Outcome
    from tuneline.tracking.experiments.sweep import SettingResult


def add_commands(app: typer.Typer) -> None:
    """File the command."""
    app.command()(sweep)


def sweep(
    config: Annotated[Path, typer.Argument(help="Run configuration, like configs/demo.yaml.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value,value; give it once a key.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each setting, whose spread is the noise.")] = 3,
    search: Annotated[
        list[str] | None,
        typer.Option(help="key=log(1e-5,1e-3), uniform(0,0.1), int(4,64) or {8,16,32}; give it once a key."),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Number of trials of a search; a larger one continues it.")] = None,
    sampler: Annotated[str | None, typer.Option(help="How a search draws: tpe or random.  [default: tpe]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampler.  [default: 0]")] = None,
    objective: Annotated[
        str | None, typer.Option(help="Metric of the held-out rows that a search looks for.  [default: the gate's]")
    ] = None,
    direction: Annotated[str | None, typer.Option(help="maximize or minimize.  [default: maximize]")] = None,
) -> None:
    """Run a recipe at several values, or search for the best, and tell real differences from the seeds' noise."""
    if seeds < 1:
        raise RecipeError(f"--seeds {seeds}: a setting needs one run at least, and two to tell its noise.")
    if search and set_:
        raise RecipeError("--search draws values, and --set lists them. Give one of both.")
    chosen = {"sampler": sampler, "seed": seed, "objective": objective, "direction": direction}
    told = {name: value for name, value in chosen.items() if value is not None}
    if search:
        if trials is None:
            raise RecipeError("--search needs --trials, the number of draws, like --trials 12.")
        return _search(searches.parse_search(config, search, trials=trials, **told), seeds)  # type: ignore[arg-type]
    if told or trials is not None:
        flag = f"--{next(iter(told), 'trials')}"
        raise RecipeError(f"{flag} is for a search. Give --search key=range, or leave {flag} out.")
    return _sweep(config, set_ or [], seeds)


def _sweep(config: Path, sets: list[str], seeds: int) -> None:
    settings = sweeps.build_settings(config, sets, seeds)
    from tuneline.runner import sweeps as running

    console = show.console()
    total, done = sum(len(setting.runs) for setting in settings), 0

    def told(name: str, outcome: "Outcome") -> None:
        nonlocal done
        done += 1
        console.print(f"{done} of {total}: {name}: {_cached(outcome)}")

    found = running.run(f"sweep of {config.stem}", settings, told)
    console.print(_table(f"{found.metric} over {seeds} seeds", found.metric, found.lines))
    console.print(f"MLflow   run {found.run_id}: sweep.html, and the runs as its children", soft_wrap=True)


def _search(asked: searches.Search, seeds: int) -> None:
    from tuneline.runner import searches as running
    from tuneline.tracking.experiments import optuna_study as kept

    console = show.console()
    if caution := searches.selection_warning(asked):
        console.print(f"Caution  {caution}", soft_wrap=True)

    def told(name: str, outcome: "Outcome | None") -> None:
        console.print(f"{name}: {_cached(outcome)}" if outcome else name, soft_wrap=True)

    found = running.run(f"search of {asked.base.path.stem}", asked, seeds, told)
    table = Table("trial", "values", asked.objective, "", title="Trials", title_justify="left")
    for cells in kept.trial_rows(found.trials, found.best):
        table.add_row(*cells)
    console.print(table)
    console.print(_table(f"Again, with {seeds} fresh seeds", asked.objective, found.lines))
    console.print(f"Verdict  {found.verdict}", soft_wrap=True)
    console.print(f"MLflow   run {found.run_id}: search.html, and the runs as its children", soft_wrap=True)


def _table(title: str, metric: str, lines: "list[SettingResult]") -> Table:
    from tuneline.tracking.experiments.sweep import format_band

    table = Table("setting", metric, "noise band", "against the best", title=title, title_justify="left")
    for line in lines:
        table.add_row(line.name, f"{line.mean:.4f}", format_band(line), line.differs)
    return table


def _cached(outcome: "Outcome") -> str:
    cached = sum(step.status == "cached" for step in outcome.steps)
    return f"{cached} of {len(outcome.steps)} steps from the cache"
