"""The Optuna study of a search, stored under the state root, so that an interrupted search can be resumed.

Values are sampled by the tree-structured Parzen estimator (Bergstra et al. 2011) or at random. An interrupted trial is
repeated with its values. A failed trial counts and stores its reason.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

from filelock import Timeout

from tuneline import state
from tuneline.config.experiments.search import Dimension, Search
from tuneline.config.experiments.sweep import describe_values
from tuneline.errors import TrackingError
from tuneline.html import render
from tuneline.tracking.experiments import sweep
from tuneline.tracking.experiments.sweep import SettingResult

RUN, REASON, PARENT = "run", "reason", "mlflow_run_id"


@dataclass(frozen=True)
class Trial:
    """A finished trial."""

    number: int
    values: dict[str, Any]
    score: float | None
    """None if it failed."""

    run: str = ""
    reason: str = ""

    @property
    def name(self) -> str:
        """The values as text."""
        return describe_values(self.values)


class Study:
    """The stored trials of one search."""

    def __init__(self, search: Search) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search = search
        with state.lock("optuna"):  # creating the tables is not safe for two processes
            self._study = optuna.create_study(
                study_name=search.name,
                storage=f"sqlite:///{state.folder('searches') / 'optuna.db'}",
                direction=search.direction,
                load_if_exists=True,
            )
        seed = search.seed + 1000 * len(self._study.trials)  # the first seed would repeat the first trials
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        self._study.sampler = samplers[search.sampler](seed=seed)
        for interrupted in self._study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            self._study.tell(interrupted.number, state=optuna.trial.TrialState.PRUNED)
            if interrupted.params:
                self._study.enqueue_trial(interrupted.params)

    @property
    def parent_run(self) -> str | None:
        """The MLflow run of this search, if it was started before."""
        run_id = self._study.user_attrs.get(PARENT)
        return None if run_id is None else str(run_id)

    @parent_run.setter
    def parent_run(self, run_id: str) -> None:
        self._study.set_user_attr(PARENT, run_id)

    def trials(self) -> list[Trial]:
        """Return the finished trials in order."""
        import optuna

        finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
        return [
            Trial(i, trial.params, trial.value, trial.user_attrs.get(RUN, ""), trial.user_attrs.get(REASON, ""))
            for i, trial in enumerate(self._study.get_trials(states=finished), start=1)
        ]

    def draw(self) -> tuple[Any, dict[str, Any]]:
        """Sample values; return the Optuna trial and the values by key."""
        trial = self._study.ask()
        return trial, {dimension.key: _suggest(trial, dimension) for dimension in self._search.dimensions}

    def tell(self, trial: Any, score: float, run: str) -> None:
        """Record the score of a trial; a score that is not finite is a failure."""
        if not isfinite(score):
            return self.fail(trial, f"{self._search.objective} is {score}")
        trial.set_user_attr(RUN, run)
        self._study.tell(trial, score)
        return None

    def fail(self, trial: Any, reason: str) -> None:
        """Record why a trial has no score."""
        import optuna

        trial.set_user_attr(REASON, reason)
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def best(self) -> Trial:
        """Return the trial with the best score.

        Raises:
            TrackingError: No trial has a score.
        """
        trials = self.trials()
        scored = [(trial.score, trial) for trial in trials if trial.score is not None]
        if not scored:
            last = trials[-1].reason if trials else "no trial was run"
            raise TrackingError(
                f"No trial of the search {self._search.name} has a score: {last}. Fix the cause, then search again."
            )
        sign = 1 if self._search.direction == "maximize" else -1
        return max(scored, key=lambda pair: sign * pair[0])[1]


def _suggest(trial: Any, dimension: Dimension) -> Any:
    if dimension.kind == "choice":
        return trial.suggest_categorical(dimension.key, list(dimension.choices))
    if dimension.kind == "int":
        return trial.suggest_int(dimension.key, int(dimension.low), int(dimension.high))
    return trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.kind == "log")


@contextmanager
def exclusive_study(search: Search) -> Iterator[Study]:
    """Open the study of a search for one process at a time.

    Raises:
        TrackingError: Another process runs the search.
    """
    try:
        with state.lock(f"search-{search.name}", timeout_seconds=1):
            yield Study(search)
    except Timeout:
        raise TrackingError(f"Another process runs the search {search.name}. Wait until it ends, or stop it.") from None


def trial_rows(trials: list[Trial], best: Trial) -> list[tuple[str, str, str, str]]:
    """Return the trials as number, values, score and note."""
    return [
        (
            str(trial.number),
            trial.name,
            "-" if trial.score is None else f"{trial.score:.4f}",
            "best of the search" if trial == best else trial.reason,
        )
        for trial in trials
    ]


def describe_confirmation(search: Search, best: SettingResult, own: SettingResult) -> str:
    """Describe the best values of a search, run again with new seeds, compared with the values of the recipe.

    Args:
        search: The search.
        best: Result of the values of the best trial.
        own: Result of the values of the recipe.
    """
    first, second = sweep.rank([best, own], search.direction)
    if len(best.scores) < 2:
        return "One seed has no variance, so it is unknown whether the best values are better than those of the recipe."
    if not second.differs.startswith("significantly"):
        return f"The best values of the search are not significantly better than those of the recipe: {second.differs}."
    if first.name == own.name:
        return f"The best values of the search are worse than those of the recipe: {second.differs}."
    return (
        f"The best values of the search are significantly better than those of the recipe, which are {second.differs}."
    )


def to_html(title: str, search: Search, trials: list[Trial], best: Trial, lines: list[SettingResult]) -> str:
    """Return the page of a search: the confirmation of its best values, and all trials."""
    return render.page(
        "search",
        title=title,
        metric=f"{search.objective}, new seeds",
        rows=sweep.table_rows(sweep.rank(lines, search.direction)),
        conclusion=describe_confirmation(search, *lines),
        objective=search.objective,
        trials=trial_rows(trials, best),
    )
