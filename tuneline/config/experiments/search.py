"""A search: keys of a recipe with ranges to draw from, in place of the lists of a sweep; checked before anything runs.

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
_HOW = "Write key=log(1e-5,1e-3), key=uniform(0,0.1), key=int(4,64) or key={8,16,32}."


@dataclass(frozen=True)
class Dimension:
    """A key and what its value is drawn from."""

    key: str
    kind: DimensionKind
    low: float = 0
    high: float = 0
    choices: tuple[Any, ...] = ()

    def ends(self) -> tuple[Any, ...]:
        """Return the values that must be right for the whole to be: both ends, or all choices."""
        if self.kind == "choice":
            return self.choices
        cast: Callable[[float], float] = int if self.kind == "int" else float
        return (cast(self.low), cast(self.high))


@dataclass(frozen=True)
class Search:
    """What is searched, checked."""

    base: RunConfig
    dimensions: tuple[Dimension, ...]
    trials: int
    sampler: str
    seed: int
    objective: str
    direction: str

    @property
    def name(self) -> str:
        """What makes it the same search, so that it goes on: all but how many trials are wanted."""
        asked = [repr(each) for each in self.dimensions]
        content = [self.base.content, asked, self.sampler, self.seed, self.objective, self.direction]
        return f"{self.base.path.stem}-{digest(content)[:12]}"

    def run(self, values: dict[str, Any], seed: int | None = None) -> RunConfig:
        """Write the run of some values, checked.

        Raises:
            RecipeError: They are no valid recipe together.
        """
        changes = values if seed is None else {**values, sweep.SEED_KEY: seed}
        return sweep.build_run(self.base, changes, flag="--search")


def parse_search(
    recipe: Path,
    written: list[str],
    *,
    trials: int,
    sampler: str = "tpe",
    seed: int = 0,
    objective: str | None = None,
    direction: str = "maximize",
) -> Search:
    """Read what is to be searched, and check it at every end and choice.

    Args:
        recipe: Run configuration.
        written: `key=range`, one a key.
        trials: How many draws, at least 2.
        sampler: `tpe` (Bergstra et al. 2011) or `random`.
        seed: Of the sampler.
        objective: Metric of the held-out rows; left out, the gate's own target where it is one, or the first of them.
        direction: `maximize` or `minimize`.

    Raises:
        RecipeError: Something of this is wrong, or a value is no valid recipe.
        SourceError: Optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise SourceError("--search needs optuna, which is not installed. Install tuneline[search], or use --set.")
    for flag, value, known in (("--sampler", sampler, SAMPLERS), ("--direction", direction, DIRECTIONS)):
        if value not in known:
            raise RecipeError(f"{flag} {value}:{did_you_mean(value, known)} Write {' or '.join(known)}.")
    if trials < MIN_TRIALS:
        raise RecipeError(f"--trials {trials}: a search draws at least {MIN_TRIALS}. Ask for more, or use --set.")
    base = load.load(recipe)
    dimensions = tuple(map(_dimension, written))
    keys = [each.key for each in dimensions]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise RecipeError(f"--search {twice[0]} is given twice. Keep one.")
    found = Search(base, dimensions, trials, sampler, seed, _objective(base.training, objective), direction)
    for dimension in dimensions:
        for value in dimension.ends():
            found.run({dimension.key: value})
    return found


def _dimension(text: str) -> Dimension:
    key, _, drawn = (part.strip() for part in text.partition("="))
    if key == sweep.SEED_KEY:
        raise RecipeError(f"--search {text}: a seed is no setting to choose. Set --seeds to how many confirm the best.")
    if key and (match := _RANGE.fullmatch(drawn)):
        kind, *ends = match.groups()
        try:
            low, high = map(float, ends)
        except ValueError:
            raise RecipeError(f"--search {text}: {' and '.join(ends)} must be two numbers. {_HOW}") from None
        whole = low.is_integer() and high.is_integer()
        if not low < high or (kind == "log" and low <= 0) or (kind == "int" and not whole):
            wanted = {"log": "0 < low < high", "int": "whole numbers with low < high"}.get(kind, "low < high")
            raise RecipeError(f"--search {text}: {kind} needs {wanted}. {_HOW}")
        return Dimension(key, kind, low, high)  # type: ignore[arg-type]
    if key and (match := _CHOICE.fullmatch(drawn)):
        choices = tuple(yaml.safe_load(each) for each in match[1].split(","))
        if len(choices) < 2 or len(set(map(repr, choices))) < len(choices) or any(isinstance(c, dict) for c in choices):
            raise RecipeError(f"--search {text}: choices must be two at least, and differ. {_HOW}")
        return Dimension(key, "choice", choices=choices)
    raise RecipeError(f"--search {text}: says no range. {_HOW}")


def _objective(recipe: Recipe, asked: str | None) -> str:
    """Return what is searched for: a metric of the held-out rows, as exams are there to judge what was found."""
    of_exams = {f"{exam.name}_{column}" for exam in recipe.exams for column in exam.columns()}
    known = [metric for metric in recipe.measured() if metric not in of_exams]
    if asked is None:
        targets = [target.metric for target in recipe.gate().all_targets() if target.metric in known]
        return (targets or known)[0]
    if asked in of_exams:
        raise RecipeError(
            f"--objective {asked}: is an exam's, and a model that was chosen by an exam is no longer judged by it. "
            f"Take one of the held-out rows: {', '.join(known)}."
        )
    if asked not in known:
        near = did_you_mean(asked, known)
        raise RecipeError(f"--objective {asked}: this recipe does not measure it.{near} Take {' or '.join(known)}.")
    return asked


def selection_warning(found: Search) -> str:
    """Say what the gate's word is worth after this search; empty where it judges by something else."""
    asked = [target.metric for target in found.base.training.gate().all_targets()]
    if found.objective not in asked:
        return ""
    return (
        f"The gate asks for {found.objective} on the same held-out rows by which this search chooses, so of its trials "
        "the best is partly the luckiest, and the gate will be too kind. Let registry.gate ask for an exam's metric."
    )
