"""A sweep: one recipe, some of its keys at several values, each with several seeds; every run is checked first."""

import copy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from tuneline import identity, state
from tuneline.config import existence, load
from tuneline.config.load import RECIPE_KEY
from tuneline.config.parsing.located_yaml import value_at
from tuneline.config.run_config import RunConfig
from tuneline.errors import RecipeError

SEED_KEY = "train.seed"


@dataclass(frozen=True)
class Setting:
    """Values of the keys that are swept, and a run for each seed."""

    values: dict[str, Any]
    runs: list[RunConfig]

    @property
    def name(self) -> str:
        """The values in words."""
        return describe_values(self.values)


def describe_values(values: dict[str, Any]) -> str:
    """Name values by the last parts of their keys: `learning_rate 0.0003, r 8`."""
    shown = ((key.rpartition(".")[2], value) for key, value in values.items())
    told = (f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown)
    return ", ".join(told) or "as it is"


def build_settings(recipe: Path, sets: list[str], num_seeds: int) -> list[Setting]:
    """Return every combination of values, each with its runs, written under the state root.

    Args:
        recipe: Run configuration.
        sets: `key=value,value`, with the dots of the recipe, like `train.learning_rate=1e-4,3e-4`.
        num_seeds: Runs of each combination, with seeds from the recipe's on.

    Raises:
        RecipeError: A key is written wrongly or twice, or a combination is no valid recipe.
    """
    base = load.load(recipe)
    grid = _grid(sets)
    first = base.training.train.seed
    found = []
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        seeds = range(first, first + num_seeds)
        found.append(Setting(chosen, [build_run(base, {**chosen, SEED_KEY: seed}) for seed in seeds]))
    return found


def _grid(sets: list[str]) -> dict[str, list[Any]]:
    grid: dict[str, list[Any]] = {}
    for text in sets:
        key, equals, values = text.partition("=")
        if not (key and equals and values):
            raise RecipeError(f"--set {text}: write key=value,value, like train.learning_rate=1e-4,3e-4.")
        if key == SEED_KEY:
            raise RecipeError(f"--set {text}: seeds are counted from the recipe's on. Set --seeds to how many.")
        if key in grid:
            raise RecipeError(f"--set {text}: {key} is set twice. List all of its values in one.")
        grid[key] = [yaml.safe_load(value) for value in values.split(",")]
    return grid


def build_run(base: RunConfig, changes: dict[str, Any], flag: str = "--set") -> RunConfig:
    """Write one run's file and check it as if a person had written it.

    Args:
        base: The recipe.
        changes: Values by key, with the dots of the recipe.
        flag: What asked for them, to be named where they are wrong.

    Raises:
        RecipeError: A key leads nowhere, or the values are no valid recipe.
        SourceError: Something that the recipe names is missing.
    """
    content = copy.deepcopy(base.content)
    for key, value in changes.items():
        *parents, name = key.split(".")
        section = value_at(content, (*RECIPE_KEY, *parents)) if parents else value_at(content, RECIPE_KEY)
        if section is None and len(parents) == 1:
            section = content["parameters"]["recipe"].setdefault(parents[0], {})
        if not isinstance(section, dict):
            raise RecipeError(f"{flag} {key}: {base.path} has no section {'.'.join(parents)}. Correct the key.")
        section[name] = value
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    path = state.folder("sweeps") / f"{base.path.stem}-{identity.digest(content)[:12]}.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        checked = load.load(path)
    except RecipeError as error:
        told = str(error).replace(str(path), str(base.path))
        asked = ", ".join(f"{k}={v}" for k, v in changes.items() if k != SEED_KEY)
        raise RecipeError(f"{flag} {asked}: {told}") from error
    existence.check(checked.recipe)
    return checked
