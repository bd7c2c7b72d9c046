"""Group-relative policy optimisation on prompts: the line of `sft_pipeline`; answers judge each other.

`zenml pipeline run pipelines.grpo_pipeline --config configs/<recipe>.yaml`
"""

from pipelines.sft import train_and_register
from tuneline.config.stages import GRPORecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("grpo")
def grpo_pipeline(recipe: GRPORecipe) -> None:
    """Learn from rewards as `recipe` says."""
    train_and_register(recipe)
