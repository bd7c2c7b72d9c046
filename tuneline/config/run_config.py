"""A run configuration: the recipe, the keys of ZenML beside it, and where both were read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.config.recipe import Recipe
from tuneline.config.stages import RunRecipe
from tuneline.errors import RecipeError


@dataclass(frozen=True)
class RunConfig:
    """A checked file: what it trains, by which pipeline, and its content, complete and with absolute paths."""

    path: Path
    pipeline: str
    recipe: RunRecipe
    content: dict[str, Any]

    @property
    def training(self) -> Recipe:
        """The recipe of a training.

        Raises:
            RecipeError: The file trains nothing.
        """
        if isinstance(self.recipe, Recipe):
            return self.recipe
        raise RecipeError(f"{self.path}: stage: {self.recipe.stage} trains nothing. Give the recipe of a training.")
