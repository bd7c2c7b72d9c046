"""Step: what the recipe names -> manifests of the bytes it means. Never cached: it looks at the outside world."""

import logging
from typing import Annotated

from zenml import step

from materializers import DOCUMENT
from tuneline.config.resolve import ResolveConfig
from tuneline.data import sources
from tuneline.identity import Manifest
from tuneline.model import start
from tuneline.tracking import intact
from tuneline.workflow import tracker

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
    """Find data sets, exams and base model; refuse early what would fail late."""
    tracker.connect()
    intact.check_champion(config.model_name)
    found, exams = sources.locate(config.sources), sources.locate_exams(config.exams)
    tokenizer, base_model, sentence = start.find(config)
    logger.info("%s", sentence)
    return found, exams, tokenizer, base_model
