"""Continued pre-training on texts, with the steps of `sft_pipeline`, evaluated by the log-likelihood of held-out texts.

`zenml pipeline run pipelines.pretrain_pipeline --config configs/<recipe>.yaml`
"""

from pipelines.sft import train_and_register
from tuneline.config.stages import PretrainRecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("pretrain")
def pretrain_pipeline(recipe: PretrainRecipe) -> None:
    """Continue pre-training."""
    train_and_register(recipe)
