"""A search's memory: an Optuna study in a file of the state root, so that an interrupted search goes on.

Values are drawn by the tree-structured Parzen estimator (Bergstra et al. 2011) or at random. A trial that was cut off
is tried again with its values; one that failed tells its reason and counts as tried.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from math import isfinite
from typing import Any

from filelock import Timeout

from tuneline import state
from tuneline.config.experiments.search import Dimension, Search
from tuneline.config.experiments.sweep import describe_values
from tuneline.errors import TrackingError
from tuneline.tracking.experiments import sweep
from tuneline.tracking.experiments.sweep import SettingResult

RUN, REASON, PARENT = "run", "reason", "mlflow_run_id"


@dataclass(frozen=True)
class Trial:
    """One draw that was run."""

    number: int
    values: dict[str, Any]
    score: float | None
    """None where it failed."""

    run: str = ""
    reason: str = ""

    @property
    def name(self) -> str:
        """Its values in words."""
        return describe_values(self.values)


class Study:
    """The trials of one search, kept in a file."""

    def __init__(self, search: Search) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search = search
        with state.lock("optuna"):  # the first one makes the tables, which two at once break
            self._study = optuna.create_study(
                study_name=search.name,
                storage=f"sqlite:///{state.folder('searches') / 'optuna.db'}",
                direction=search.direction,
                load_if_exists=True,
            )
        drawn = search.seed + 1000 * len(self._study.trials)  # going on with the first seed would draw the first again
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        self._study.sampler = samplers[search.sampler](seed=drawn)
        for cut_off in self._study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            self._study.tell(cut_off.number, state=optuna.trial.TrialState.PRUNED)
            if cut_off.params:
                self._study.enqueue_trial(cut_off.params)

    @property
    def parent_run(self) -> str | None:
        """The MLflow run of this search, where it was begun before."""
        found = self._study.user_attrs.get(PARENT)
        return None if found is None else str(found)

    @parent_run.setter
    def parent_run(self, run_id: str) -> None:
        self._study.set_user_attr(PARENT, run_id)

    def trials(self) -> list[Trial]:
        """Return the trials that came to an end, in order."""
        import optuna

        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
        return [
            Trial(i, each.params, each.value, each.user_attrs.get(RUN, ""), each.user_attrs.get(REASON, ""))
            for i, each in enumerate(self._study.get_trials(states=ended), start=1)
        ]

    def draw(self) -> tuple[Any, dict[str, Any]]:
        """Draw values; return the trial to tell about, and the values by key."""
        trial = self._study.ask()
        return trial, {each.key: _suggest(trial, each) for each in self._search.dimensions}

    def tell(self, trial: Any, score: float, run: str) -> None:
        """Note what a trial came to; a score that is no number is a failure."""
        if not isfinite(score):
            return self.fail(trial, f"{self._search.objective} is {score}")
        trial.set_user_attr(RUN, run)
        self._study.tell(trial, score)
        return None

    def fail(self, trial: Any, reason: str) -> None:
        """Note why a trial has no score."""
        import optuna

        trial.set_user_attr(REASON, reason)
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def best(self) -> Trial:
        """Return the trial with the best score.

        Raises:
            TrackingError: None has one.
        """
        trials = self.trials()
        scored = [(each.score, each) for each in trials if each.score is not None]
        if not scored:
            last = trials[-1].reason if trials else "none was run"
            raise TrackingError(
                f"No trial of the search {self._search.name} has a score: {last}. Mend it, and search again."
            )
        sign = 1 if self._search.direction == "maximize" else -1
        return max(scored, key=lambda each: sign * each[0])[1]


def _suggest(trial: Any, dimension: Dimension) -> Any:
    if dimension.kind == "choice":
        return trial.suggest_categorical(dimension.key, list(dimension.choices))
    if dimension.kind == "int":
        return trial.suggest_int(dimension.key, int(dimension.low), int(dimension.high))
    return trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.kind == "log")


@contextmanager
def exclusive_study(search: Search) -> Iterator[Study]:
    """Open the study of a search; one process at a time goes on with it.

    Raises:
        TrackingError: Another process does.
    """
    try:
        with state.lock(f"search-{search.name}", timeout_seconds=1):
            yield Study(search)
    except Timeout:
        raise TrackingError(f"Another process runs the search {search.name}. Wait for it, or end it.") from None


def trial_rows(trials: list[Trial], best: Trial) -> list[tuple[str, str, str, str]]:
    """Return the trials as number, values, score, and what is to be said of each."""
    return [
        (
            str(each.number),
            each.name,
            "-" if each.score is None else f"{each.score:.4f}",
            "best of the search" if each == best else each.reason,
        )
        for each in trials
    ]


def describe_confirmation(search: Search, best: SettingResult, own: SettingResult) -> str:
    """Say what fresh seeds showed of the best of a search, against the recipe's own values.

    Args:
        search: What was searched.
        best: The best trial's values, run again.
        own: The recipe's own values.
    """
    first, second = sweep.rank([best, own], search.direction)
    if len(best.scores) < 2:
        return "One seed tells no noise, so whether the best is better than the recipe's own values is not known."
    if not second.differs.startswith("really"):
        return f"The best of the search is not surely better than the recipe's own values: {second.differs}."
    if first.name == own.name:
        return f"The best of the search is worse than the recipe's own values: {second.differs}."
    return f"The best of the search is really better than the recipe's own values, which are {second.differs}."


def to_html(title: str, search: Search, trials: list[Trial], best: Trial, lines: list[SettingResult]) -> str:
    """Write trials and confirmation as a page that needs nothing beside it."""
    head = f"<tr><th>trial<th>values<th>{escape(search.objective)}<th></tr>"
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells) + "</tr>" for cells in trial_rows(trials, best)
    )
    ranked = sweep.rank(lines, search.direction)
    page = sweep.to_html(title, f"{search.objective}, fresh seeds", ranked)
    return page + f"<p>{escape(describe_confirmation(search, *lines))}</p><h2>Trials</h2><table>{head}{rows}</table>"
