"""Direct preference optimization on pairs, with the initial model as reference, with the steps of `sft_pipeline`.

`zenml pipeline run pipelines.dpo_pipeline --config configs/<recipe>.yaml`
"""

from pipelines.sft import train_and_register
from tuneline.config.stages import DPORecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("dpo")
def dpo_pipeline(recipe: DPORecipe) -> None:
    """Train on preference pairs."""
    train_and_register(recipe)
