"""Export of a model: merged weights, tokenizer, model card and Modelfile, in a folder and on the Hub.

`zenml pipeline run pipelines.export_pipeline --config configs/<recipe>.yaml`
"""

from steps.export import export
from steps.locate import locate
from steps.publish import publish
from tuneline.config.sections.export import ExportRecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("export")
def export_pipeline(recipe: ExportRecipe) -> None:
    """Export a model."""
    tokenizer, base_model, origin = locate(recipe.for_locate())
    exported = export(tokenizer, base_model, origin, recipe.for_export())
    publish(exported, origin, recipe.for_publish())
