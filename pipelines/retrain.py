"""Retraining: the same line as `sft_pipeline`, on the data as they are when it fires.

Everything is known by content, so unchanged data is a run of cached steps that ends in one line; changed data is
aligned, trained, judged and promoted or kept. With `schedule:` in its YAML it is fired by the scheduler.
"""

from pipelines.sft import sft_pipeline
from tuneline.config.stages import SFTRecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("sft")
def retrain_pipeline(recipe: SFTRecipe) -> None:
    """Fine-tune again if anything that `recipe` names has changed."""
    sft_pipeline.entrypoint(recipe)
