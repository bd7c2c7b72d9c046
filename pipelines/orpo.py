"""Odds-ratio preference optimization on pairs, without a reference, with the steps of `sft_pipeline`.

`zenml pipeline run pipelines.orpo_pipeline --config configs/<recipe>.yaml`
"""

from pipelines.sft import train_and_register
from tuneline.config.stages import ORPORecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("orpo")
def orpo_pipeline(recipe: ORPORecipe) -> None:
    """Train on preference pairs."""
    train_and_register(recipe)
