"""Supervised fine-tuning, from data files to a registered model with a gate decision."""

from steps.align import align
from steps.evaluate import evaluate
from steps.ingest import ingest
from steps.merge import merge
from steps.merge_adapter import merge_adapter
from steps.register import register
from steps.resolve import resolve
from steps.tokenize_pack import tokenize_pack
from steps.train import train
from tuneline.config.recipe import Recipe
from tuneline.config.stages import SFTRecipe
from tuneline.zenml_integration.strict_pipeline import strict_pipeline


@strict_pipeline("sft")
def sft_pipeline(recipe: SFTRecipe) -> None:
    """Run supervised fine-tuning."""
    train_and_register(recipe)


def train_and_register(recipe: Recipe) -> None:
    """Call the steps in order; the training stages differ only in their recipe."""
    sources, benchmarks, tokenizer, base_model = resolve(recipe.for_resolve())
    examples = []
    for source in recipe.unique_sources():
        records = ingest(sources, recipe.for_ingest(source), id=f"ingest_{source.name}")
        examples.append(align(records, recipe.for_align(source), id=f"align_{source.name}"))
    mixture = merge(examples, benchmarks, recipe.for_merge())
    rows = tokenize_pack(mixture, tokenizer, recipe.for_tokenize())
    load, optimization = recipe.for_load(), recipe.for_train()
    checkpoint, training_report = train(rows, base_model, tokenizer, load, recipe.method, optimization)
    model = merge_adapter(checkpoint, base_model, tokenizer, rows, load, recipe.merge_adapter)
    report = evaluate(model, base_model, tokenizer, mixture, benchmarks, recipe.for_evaluate())
    register(report, model, training_report, sources, benchmarks, base_model, mixture, rows, recipe)
