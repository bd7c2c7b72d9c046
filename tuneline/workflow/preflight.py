"""Checks before a run: everything that can be known to be wrong in seconds, with one clear error each."""

from tuneline.config.export import ExportRecipe
from tuneline.config.stages import PIPELINE_OF, AnyRun

CHECKED_ROWS = 10_000


def check_content(recipe: AnyRun) -> None:
    """Read the first rows, the exams and the registry; what a step would refuse later is refused now.

    Raises:
        TunelineError: A row, an exam, a model or the tracking server is not as it must be.
    """
    from tuneline.data import align, benchmarks, harness, sources
    from tuneline.model import start
    from tuneline.tracking import intact
    from tuneline.workflow import tracker

    if isinstance(recipe, ExportRecipe):
        from tuneline.workflow import exports

        tracker.connect()
        exports.locate(recipe.for_locate())
        return
    tracker.connect_to_registry(*PIPELINE_OF[recipe.stage])
    intact.check_champion(recipe.registry.model_name)
    found = sources.locate(recipe.sources_once())
    for source in recipe.sources_once():
        align.check_rows(sources.first_rows(found.item(source.name), CHECKED_ROWS), recipe.for_align(source))
    for exam in sources.locate_exams(recipe.exams).items:
        if not harness.is_task(exam):
            benchmarks.read_exam(exam)
    start.find(recipe.for_resolve())
