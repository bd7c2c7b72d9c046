"""Checks before a run: errors that can be found in seconds, each with one message."""

from tuneline.config.sections.export import ExportRecipe
from tuneline.config.stages import PIPELINES_BY_STAGE, RunRecipe
from tuneline.data.benchmarks import exam_files

NUM_CHECKED_ROWS = 10_000
"""Number of first rows that are read per dataset; if none has more, the mixture is built as well."""


def check_content(recipe: RunRecipe) -> None:
    """Check the first rows, the exams, the model and the registry, so that a step does not fail on them later.

    Raises:
        TunelineError: A row, an exam, the model or the tracking server has an error.
    """
    from tuneline.data import prepare
    from tuneline.data.align import align
    from tuneline.data.benchmarks import lm_eval, multiple_choice
    from tuneline.data.ingest import ingest
    from tuneline.model import resolve
    from tuneline.tracking import integrity
    from tuneline.zenml_integration import tracker

    if isinstance(recipe, ExportRecipe):
        from tuneline.zenml_integration import locate

        tracker.connect()
        locate.locate(recipe.for_locate())
        return
    tracker.connect_to_registry(*PIPELINES_BY_STAGE[recipe.stage])
    integrity.check_champion(recipe.registry.model_name)
    sources = ingest.locate_sources(recipe.unique_sources())
    read_whole = True
    for source in recipe.unique_sources():
        rows = ingest.read_first_rows(sources.item(source.name), NUM_CHECKED_ROWS)
        align.check_rows(rows, recipe.for_align(source))
        read_whole = read_whole and len(rows) < NUM_CHECKED_ROWS
    exams = exam_files.locate_exams(recipe.exams)
    for exam in exams.items:
        if not lm_eval.is_lm_eval_benchmark(exam):
            multiple_choice.read_exam(exam)
    if read_whole:  # all rows are known, so that `merge` would raise the same errors
        prepare.build_mixture_from_files(recipe, sources, exams)
    resolve.resolve_inputs(recipe.for_resolve())
