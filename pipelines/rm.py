"""Reward modeling on pairs: an adapter and a value head, with the steps of `sft_pipeline`.

`zenml pipeline run pipelines.rm_pipeline --config configs/<recipe>.yaml`
"""

from pipelines.sft import train_and_register
from tuneline.config.stages import RewardRecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("rm")
def rm_pipeline(recipe: RewardRecipe) -> None:
    """Train a reward model."""
    train_and_register(recipe)
