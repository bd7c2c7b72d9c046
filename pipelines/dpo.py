"""Direct preference optimisation on pairs, against the model as it starts: the line of `sft_pipeline`.

`zenml pipeline run pipelines.dpo_pipeline --config configs/<recipe>.yaml`
"""

from pipelines.sft import train_and_register
from tuneline.config.stages import DPORecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("dpo")
def dpo_pipeline(recipe: DPORecipe) -> None:
    """Train on pairs as `recipe` says."""
    train_and_register(recipe)
