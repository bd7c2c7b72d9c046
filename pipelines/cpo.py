"""Contrastive preference optimization on pairs, without a reference, with the steps of `sft_pipeline`.

`zenml pipeline run pipelines.cpo_pipeline --config configs/<recipe>.yaml`
"""

from pipelines.sft import train_and_register
from tuneline.config.stages import CPORecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("cpo")
def cpo_pipeline(recipe: CPORecipe) -> None:
    """Train on preference pairs."""
    train_and_register(recipe)
