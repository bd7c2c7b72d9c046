"""`tuneline sweep`: grids of values, or a search in ranges."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tuneline.cli import run_view, show
from tuneline.errors import RecipeError

if TYPE_CHECKING:
    from tuneline.config.experiments.search import Search
    from tuneline.config.run_config import RunConfig
    from tuneline.runner.start import Outcome
    from tuneline.tracking.experiments.sweep import SettingResult


def add_commands(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(sweep)


def sweep(
    config: Annotated[Path, typer.Argument(help="Run configuration, like configs/demo.yaml.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value,value; repeat it for each key.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of runs per setting; their spread estimates the noise.")] = 3,
    search: Annotated[
        list[str] | None,
        typer.Option(help="key=log(1e-5,1e-3), uniform(0,0.1), int(4,64) or {8,16,32}; repeat it for each key."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Number of trials of a search; a larger number continues it.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler of a search: tpe or random.  [default: tpe]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampler.  [default: 0]")] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="Metric on the held-out rows that a search optimizes.  [default: the metric of the gate]"),
    ] = None,
    direction: Annotated[
        str | None, typer.Option(help="Direction of the objective: maximize or minimize.  [default: maximize]")
    ] = None,
    verbose: show.VerboseOption = False,
) -> None:
    """Run a recipe with several values, or search for the best, and compare the differences with the noise of seeds."""
    if seeds < 1:
        raise RecipeError(f"--seeds {seeds}: a setting needs one run at least, and two to estimate its noise.")
    if search and set_:
        raise RecipeError("--search and --set cannot be combined. Remove one of them.")
    options = {"sampler": sampler, "seed": seed, "objective": objective, "direction": direction}
    search_options = {name: value for name, value in options.items() if value is not None}
    if search:
        if trials is None:
            raise RecipeError("--search needs --trials, the number of trials, such as --trials 12.")
        from tuneline.config.experiments import search as searches

        plan = searches.parse_search(config, search, trials=trials, **search_options)  # type: ignore[arg-type]
        return _search(plan, seeds, verbose=verbose)
    if search_options or trials is not None:
        flag = f"--{next(iter(search_options), 'trials')}"
        raise RecipeError(f"{flag} is for a search. Add --search key=range, or remove {flag}.")
    return _sweep(config, set_ or [], seeds, verbose=verbose)


def _sweep(config: Path, sets: list[str], seeds: int, *, verbose: bool) -> None:
    from tuneline.config.experiments import sweep as sweeps

    settings = sweeps.build_settings(config, sets, seeds)
    total, done = sum(len(setting.runs) for setting in settings), 0
    with _view(config.stem, settings[0].runs[0], verbose=verbose) as view:
        from tuneline.runner import sweeps as running

        def report(name: str, outcome: "Outcome") -> None:
            nonlocal done
            done += 1
            view.print(f"{done} of {total}: {name}: {_count_cached(outcome)}")

        swept = running.run(f"sweep of {config.stem}", settings, report)
    console = show.console()
    console.print(_table(f"{swept.metric} over {seeds} seeds", swept.metric, swept.lines))
    console.print(f"MLflow   run {swept.run_id}: sweep.html, and the runs as its children", soft_wrap=True)


def _search(plan: "Search", seeds: int, *, verbose: bool) -> None:
    from tuneline.config.experiments import search as searches

    console = show.console()
    if caution := searches.selection_warning(plan):
        console.print(f"Caution  {caution}", soft_wrap=True)
    with _view(plan.base.path.stem, plan.base, verbose=verbose) as view:
        from tuneline.runner import searches as running
        from tuneline.tracking.experiments import optuna_study

        def report(name: str, outcome: "Outcome | None") -> None:
            view.print(f"{name}: {_count_cached(outcome)}" if outcome else name)

        searched = running.run(f"search of {plan.base.path.stem}", plan, seeds, report)
    table = Table("trial", "values", plan.objective, "", title="Trials", title_justify="left")
    for cells in optuna_study.trial_rows(searched.trials, searched.best):
        table.add_row(*cells)
    console.print(table)
    console.print(_table(f"Confirmation with {seeds} new seeds", plan.objective, searched.lines))
    console.print(f"Verdict  {searched.verdict}", soft_wrap=True)
    console.print(f"MLflow   run {searched.run_id}: search.html, and the runs as its children", soft_wrap=True)


def _view(name: str, config: "RunConfig", *, verbose: bool) -> AbstractContextManager[run_view.RunView]:
    """Show runs without their cached steps, which the line of each run counts."""
    return run_view.open_view(f"sweep-{name}", config.recipe.step_names(), verbose=verbose, show_cached=False)


def _table(title: str, metric: str, lines: "list[SettingResult]") -> Table:
    from tuneline.tracking.experiments.sweep import format_band

    table = Table("setting", metric, "noise band", "difference from the best", title=title, title_justify="left")
    for line in lines:
        table.add_row(line.name, f"{line.mean:.4f}", format_band(line), line.differs)
    return table


def _count_cached(outcome: "Outcome") -> str:
    cached = sum(step.status == "cached" for step in outcome.steps)
    return f"{cached} of {len(outcome.steps)} steps cached"
