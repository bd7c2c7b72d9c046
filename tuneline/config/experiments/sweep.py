"""Sweep: a recipe with several values per key and several seeds. Every run is validated before the first one starts."""

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
    """One combination of swept values, with one run per seed."""

    values: dict[str, Any]
    runs: list[RunConfig]

    @property
    def name(self) -> str:
        """The values as text."""
        return describe_values(self.values)


def describe_values(values: dict[str, Any]) -> str:
    """Describe values by the last parts of their keys: `learning_rate 0.0003, r 8`."""
    names = ((key.rpartition(".")[2], value) for key, value in values.items())
    parts = (f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in names)
    return ", ".join(parts) or "unchanged"


def build_settings(recipe: Path, sets: list[str], num_seeds: int) -> list[Setting]:
    """Return every combination of values with its runs, which are written under the state root.

    Args:
        recipe: Run configuration.
        sets: `key=value,value` with dotted recipe keys, like `train.learning_rate=1e-4,3e-4`.
        num_seeds: Number of runs per combination, with consecutive seeds starting at the recipe's.

    Raises:
        RecipeError: A key is invalid or duplicate, or a combination is not a valid recipe.
    """
    base = load.load(recipe)
    grid = _grid(sets)
    first_seed = base.training.train.seed
    settings = []
    for combination in product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        seeds = range(first_seed, first_seed + num_seeds)
        settings.append(Setting(values, [build_run(base, {**values, SEED_KEY: seed}) for seed in seeds]))
    return settings


def _grid(sets: list[str]) -> dict[str, list[Any]]:
    grid: dict[str, list[Any]] = {}
    for text in sets:
        key, equals, values = text.partition("=")
        if not (key and equals and values):
            raise RecipeError(
                f"--set {text}: expected key=value,value. Write train.learning_rate=1e-4,3e-4, for example."
            )
        if key == SEED_KEY:
            raise RecipeError(f"--set {text}: the seed cannot be swept. Set --seeds to the number of seeds.")
        if key in grid:
            raise RecipeError(f"--set {text}: {key} is set twice. List all values in one --set.")
        grid[key] = [yaml.safe_load(value) for value in values.split(",")]
    return grid


def build_run(base: RunConfig, changes: dict[str, Any], flag: str = "--set") -> RunConfig:
    """Write a run configuration with changed values and validate it like a user's file.

    Args:
        base: The recipe.
        changes: Values by dotted recipe key.
        flag: Command line option for error messages.

    Raises:
        RecipeError: A key does not exist, or the values are not a valid recipe.
        SourceError: A file, model or package that the recipe names is missing.
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
        message = str(error).replace(str(path), str(base.path))
        settings = ", ".join(f"{key}={value}" for key, value in changes.items() if key != SEED_KEY)
        raise RecipeError(f"{flag} {settings}: {message}") from error
    existence.check(checked.recipe)
    return checked
