"""Proximal policy optimisation on prompts: the line of `sft_pipeline`; one base model plays all roles.

`zenml pipeline run pipelines.ppo_pipeline --config configs/<recipe>.yaml`
"""

from pipelines.sft import train_and_register
from tuneline.config.stages import PPORecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("ppo")
def ppo_pipeline(recipe: PPORecipe) -> None:
    """Learn from rewards as `recipe` says."""
    train_and_register(recipe)
