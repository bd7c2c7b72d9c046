"""The data worker in one call: what a recipe names -> mixture -> training rows, without ZenML.

The same functions as the pipeline's steps, in the same order, for tests, benchmarks, previews and notebooks.
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
    """Read, align and merge the data sets of a recipe.

    Raises:
        TunelineError: As each step does.
    """
    return build_mixture_from_files(
        recipe, ingest.locate_sources(recipe.unique_sources()), exam_files.locate_exams(recipe.exams)
    )


def build_mixture_from_files(recipe: Recipe, found: Manifest, exams: Manifest) -> Corpus:
    """Read, align and merge data sets whose files, and those of the exams, are known."""
    examples = [
        align.align(ingest.ingest(found, recipe.for_ingest(source)), recipe.for_align(source))
        for source in recipe.unique_sources()
    ]
    return merge.merge(examples, exams, recipe.for_merge())


def prepare(recipe: Recipe, tokenizer: Manifest, model_type: str = "") -> Corpus:
    """Make the training rows of a recipe.

    Args:
        recipe: What a run would be given.
        tokenizer: The base model's; it gets the recipe's chat template.
        model_type: The base model's architecture, by which a tokenizer without a template gets one.

    Raises:
        TunelineError: As each step does.
    """
    chosen, _ = selection.select_template(tokenizer, recipe.template, model_type, recipe.template_arguments)
    return tokenize.tokenize_pack(build_mixture(recipe), chosen, recipe.for_tokenize())
