"""Step: names in the recipe -> manifests of files. Never cached: it reads the outside world."""

import logging
from typing import Annotated

from zenml import step

from materializers import DOCUMENT
from tuneline.config.sections.resolve import ResolveConfig
from tuneline.data.benchmarks import exam_files
from tuneline.data.ingest import ingest
from tuneline.identity import Manifest
from tuneline.model import resolve as resolve_module
from tuneline.tracking import integrity
from tuneline.zenml_integration import tracker

logger = logging.getLogger(__name__)


@step(enable_cache=False, output_materializers=DOCUMENT)
def resolve(
    config: ResolveConfig,
) -> tuple[
    Annotated[Manifest, "sources"],
    Annotated[Manifest, "benchmarks"],
    Annotated[Manifest, "tokenizer"],
    Annotated[Manifest, "base_model"],
]:
    """Find datasets, exams and base model; raise early the errors that a later step would raise."""
    tracker.connect()
    integrity.check_champion(config.model_name)
    sources, exams = ingest.locate_sources(config.sources), exam_files.locate_exams(config.exams)
    tokenizer, base_model, sentence = resolve_module.resolve_inputs(config)
    logger.info("%s", sentence)
    return sources, exams, tokenizer, base_model
