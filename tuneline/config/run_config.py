"""A validated run configuration: the recipe, the pipeline, and the file's content."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.config.recipe import Recipe
from tuneline.config.stages import RunRecipe
from tuneline.errors import RecipeError


@dataclass(frozen=True)
class RunConfig:
    """A validated run configuration file, with complete content and absolute paths."""

    path: Path
    pipeline: str
    recipe: RunRecipe
    content: dict[str, Any]

    @property
    def training(self) -> Recipe:
        """Recipe of a training stage.

        Raises:
            RecipeError: The recipe exports a model.
        """
        if isinstance(self.recipe, Recipe):
            return self.recipe
        raise RecipeError(f"{self.path}: stage: {self.recipe.stage} does not train a model. Pass a training recipe.")
