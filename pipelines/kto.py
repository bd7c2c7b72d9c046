"""Kahneman-Tversky optimization on single answers with a label, with the steps of `sft_pipeline`.

`zenml pipeline run pipelines.kto_pipeline --config configs/<recipe>.yaml`
"""

from pipelines.sft import train_and_register
from tuneline.config.stages import KTORecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("kto")
def kto_pipeline(recipe: KTORecipe) -> None:
    """Train on labeled answers."""
    train_and_register(recipe)
