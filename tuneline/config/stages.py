"""Every stage that a run configuration can name: those that train, and the export of what was trained."""

from tuneline.config import recipe
from tuneline.config.export import ExportRecipe
from tuneline.config.recipe import RECIPES, Recipe

AnyRun = Recipe | ExportRecipe

RUNS: dict[str, type[Recipe] | type[ExportRecipe]] = {**RECIPES, "export": ExportRecipe}
"""Stage -> its recipe."""

PIPELINE_OF = {**recipe.PIPELINE_OF, "export": ("export_pipeline",)}
"""Stage -> the pipelines that run it; the first by itself."""
