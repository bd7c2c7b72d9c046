"""Group-relative policy optimization on prompts, with the steps of `sft_pipeline`; rewards are relative to the group.

`zenml pipeline run pipelines.grpo_pipeline --config configs/<recipe>.yaml`
"""

from pipelines.sft import train_and_register
from tuneline.config.stages import GRPORecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("grpo")
def grpo_pipeline(recipe: GRPORecipe) -> None:
    """Train on rewards."""
    train_and_register(recipe)
