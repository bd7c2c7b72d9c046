"""Retraining: the steps of `sft_pipeline`, on the data at the time of the run.

Inputs are identified by content: with unchanged data, all steps come from the cache; with changed data, a new model is
trained and compared. With `schedule:` in its YAML, the scheduler starts it.
"""

from pipelines.sft import sft_pipeline
from tuneline.config.stages import SFTRecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("sft")
def retrain_pipeline(recipe: SFTRecipe) -> None:
    """Fine-tune again if the data, the base model or the recipe changed."""
    sft_pipeline.entrypoint(recipe)
