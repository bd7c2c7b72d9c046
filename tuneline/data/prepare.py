"""Prepare the training rows of a recipe in one call, without ZenML.

Calls the functions of the pipeline's steps in the same order; for tests, benchmarks, previews and notebooks.
"""

from tuneline.config.recipe import Recipe
from tuneline.data.align import align
from tuneline.data.benchmarks import exam_files
from tuneline.data.chat_template import selection
from tuneline.data.corpus import Corpus
from tuneline.data.ingest import ingest
from tuneline.data.mixture import merge
from tuneline.data.tokenization import tokenize
from tuneline.identity import Manifest


def build_mixture(recipe: Recipe) -> Corpus:
    """Read, align and merge the datasets of a recipe.

    Raises:
        TunelineError: As each step does.
    """
    return build_mixture_from_files(
        recipe, ingest.locate_sources(recipe.unique_sources()), exam_files.locate_exams(recipe.exams)
    )


def build_mixture_from_files(recipe: Recipe, sources: Manifest, exams: Manifest) -> Corpus:
    """Read, align and merge datasets whose files, and those of the exams, are already located."""
    examples = [
        align.align(ingest.ingest(sources, recipe.for_ingest(source)), recipe.for_align(source))
        for source in recipe.unique_sources()
    ]
    return merge.merge(examples, exams, recipe.for_merge())


def prepare(recipe: Recipe, tokenizer: Manifest, model_type: str = "") -> Corpus:
    """Make the training rows of a recipe.

    Args:
        recipe: The recipe of the run.
        tokenizer: The base model's tokenizer; it gets the recipe's chat template.
        model_type: The base model's architecture, which selects a template for a tokenizer without one.

    Raises:
        TunelineError: As each step does.
    """
    tokenizer_with_template, _ = selection.select_template(
        tokenizer, recipe.template, model_type, recipe.template_arguments
    )
    return tokenize.tokenize_pack(build_mixture(recipe), tokenizer_with_template, recipe.for_tokenize())
