"""Every stage that a run configuration can name: those that train, and the export of what was trained."""

from tuneline.config.recipe import RECIPES, Recipe
from tuneline.config.sections.export import ExportRecipe

AnyRun = Recipe | ExportRecipe

RUNS: dict[str, type[Recipe] | type[ExportRecipe]] = {**RECIPES, "export": ExportRecipe}
"""Stage -> its recipe."""

PIPELINE_OF = {
    "sft": ("sft_pipeline", "retrain_pipeline"),
    **{stage: (f"{stage}_pipeline",) for stage in RUNS if stage != "sft"},
}
"""Stage -> the pipelines that run it; the first by itself."""
