"""Hyperparameter search: recipe keys with ranges to sample from, validated before the first trial.

`train.learning_rate=log(1e-5,1e-3)`, `method.lora_dropout=uniform(0,0.1)`, `method.r=int(4,64)`, `method.r={8,16,32}`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml

from tuneline.config import load
from tuneline.config.experiments import sweep
from tuneline.config.recipe import Recipe
from tuneline.config.run_config import RunConfig
from tuneline.errors import RecipeError, SourceError, did_you_mean
from tuneline.identity import digest

DimensionKind = Literal["log", "uniform", "int", "choice"]
SAMPLERS = ("tpe", "random")
DIRECTIONS = ("maximize", "minimize")
MIN_TRIALS = 2

_RANGE = re.compile(r"(log|uniform|int)\(([^,()]+),([^,()]+)\)")
_CHOICE = re.compile(r"\{([^{}]+)\}")
_SYNTAX = "Write key=log(1e-5,1e-3), key=uniform(0,0.1), key=int(4,64) or key={8,16,32}."


@dataclass(frozen=True)
class Dimension:
    """A key and the distribution of its value."""

    key: str
    kind: DimensionKind
    low: float = 0
    high: float = 0
    choices: tuple[Any, ...] = ()

    def boundary_values(self) -> tuple[Any, ...]:
        """Return the values to validate: both bounds, or all choices."""
        if self.kind == "choice":
            return self.choices
        convert: Callable[[float], float] = int if self.kind == "int" else float
        return (convert(self.low), convert(self.high))


@dataclass(frozen=True)
class Search:
    """A validated search."""

    base: RunConfig
    dimensions: tuple[Dimension, ...]
    trials: int
    sampler: str
    seed: int
    objective: str
    direction: str

    @property
    def name(self) -> str:
        """Identity of the search, by which it is resumed. The number of trials is not part of it."""
        dimensions = [repr(dimension) for dimension in self.dimensions]
        content = [self.base.content, dimensions, self.sampler, self.seed, self.objective, self.direction]
        return f"{self.base.path.stem}-{digest(content)[:12]}"

    def run(self, values: dict[str, Any], seed: int | None = None) -> RunConfig:
        """Write and validate the run configuration of a trial.

        Raises:
            RecipeError: The values are not a valid recipe.
        """
        changes = values if seed is None else {**values, sweep.SEED_KEY: seed}
        return sweep.build_run(self.base, changes, flag="--search")


def parse_search(
    recipe: Path,
    ranges: list[str],
    *,
    trials: int,
    sampler: str = "tpe",
    seed: int = 0,
    objective: str | None = None,
    direction: str = "maximize",
) -> Search:
    """Parse a search and validate it at every bound and choice.

    Args:
        recipe: Run configuration.
        ranges: `key=range`, one per key.
        trials: Number of trials, at least 2.
        sampler: `tpe` (Bergstra et al. 2011) or `random`.
        seed: Seed of the sampler.
        objective: Metric of held-out rows. If omitted, the gate's target if it is one, or the first metric.
        direction: `maximize` or `minimize`.

    Raises:
        RecipeError: An argument is invalid, or a value is not a valid recipe.
        SourceError: Optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise SourceError("--search requires optuna, which is not installed. Install tuneline[search], or use --set.")
    for flag, value, known in (("--sampler", sampler, SAMPLERS), ("--direction", direction, DIRECTIONS)):
        if value not in known:
            raise RecipeError(f"{flag} {value}: unknown value.{did_you_mean(value, known)} Set {' or '.join(known)}.")
    if trials < MIN_TRIALS:
        raise RecipeError(f"--trials {trials}: expected at least {MIN_TRIALS}. Increase it, or use --set.")
    base = load.load(recipe)
    dimensions = tuple(map(_parse_dimension, ranges))
    keys = [dimension.key for dimension in dimensions]
    if duplicates := [key for key in keys if keys.count(key) > 1]:
        raise RecipeError(f"--search {duplicates[0]} is given twice. Remove one.")
    search = Search(base, dimensions, trials, sampler, seed, _objective(base.training, objective), direction)
    for dimension in dimensions:
        for value in dimension.boundary_values():
            search.run({dimension.key: value})
    return search


def _parse_dimension(text: str) -> Dimension:
    key, _, distribution = (part.strip() for part in text.partition("="))
    if key == sweep.SEED_KEY:
        raise RecipeError(
            f"--search {text}: the seed cannot be searched. Set --seeds to the number of confirmation runs."
        )
    if key and (match := _RANGE.fullmatch(distribution)):
        kind, *bounds = match.groups()
        try:
            low, high = map(float, bounds)
        except ValueError:
            raise RecipeError(f"--search {text}: {' and '.join(bounds)} must be two numbers. {_SYNTAX}") from None
        are_integers = low.is_integer() and high.is_integer()
        if not low < high or (kind == "log" and low <= 0) or (kind == "int" and not are_integers):
            expected = {"log": "0 < low < high", "int": "whole numbers with low < high"}.get(kind, "low < high")
            raise RecipeError(f"--search {text}: {kind} requires {expected}. {_SYNTAX}")
        return Dimension(key, kind, low, high)  # type: ignore[arg-type]
    if key and (match := _CHOICE.fullmatch(distribution)):
        choices = tuple(yaml.safe_load(choice) for choice in match[1].split(","))
        if len(choices) < 2 or len(set(map(repr, choices))) < len(choices) or any(isinstance(c, dict) for c in choices):
            raise RecipeError(f"--search {text}: expected at least two different choices. {_SYNTAX}")
        return Dimension(key, "choice", choices=choices)
    raise RecipeError(f"--search {text}: expected a range. {_SYNTAX}")


def _objective(recipe: Recipe, metric: str | None) -> str:
    """Return the metric to optimize. Only metrics of held-out rows are allowed, so that exams remain independent."""
    exam_metrics = {f"{exam.name}_{column}" for exam in recipe.exams for column in exam.columns()}
    known = [name for name in recipe.metric_names() if name not in exam_metrics]
    if metric is None:
        targets = [target.metric for target in recipe.gate().all_targets() if target.metric in known]
        return (targets or known)[0]
    if metric in exam_metrics:
        raise RecipeError(
            f"--objective {metric}: is a metric of an exam, which would no longer be independent of the choice of the "
            f"model. Set a metric of held-out rows: {', '.join(known)}."
        )
    if metric not in known:
        suggestion = did_you_mean(metric, known)
        raise RecipeError(
            f"--objective {metric}: this recipe does not measure it.{suggestion} Set {' or '.join(known)}."
        )
    return metric


def selection_warning(search: Search) -> str:
    """Return a warning if the gate uses the metric that the search optimizes; empty otherwise."""
    targets = [target.metric for target in search.base.training.gate().all_targets()]
    if search.objective not in targets:
        return ""
    return (
        f"The gate uses {search.objective} on the same held-out rows as this search, so the score of the best trial is "
        "biased upwards (selection bias) and the gate is too lenient. Set a metric of an exam in registry.gate."
    )
