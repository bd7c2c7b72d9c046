"""Proximal policy optimization on prompts, with the steps of `sft_pipeline`; one base model serves all roles.

`zenml pipeline run pipelines.ppo_pipeline --config configs/<recipe>.yaml`
"""

from pipelines.sft import train_and_register
from tuneline.config.stages import PPORecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("ppo")
def ppo_pipeline(recipe: PPORecipe) -> None:
    """Train on rewards."""
    train_and_register(recipe)
