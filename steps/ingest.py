"""Step: files of one dataset -> records with file and line."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers import CORPUS
from steps.caching import library_source_hash
from tuneline.config.sections.sources import IngestConfig
from tuneline.data.corpus import Corpus
from tuneline.data.ingest import ingest as data_sources
from tuneline.identity import Manifest


def cache_key() -> str:
    """Return what decides the result besides the inputs: library source and package versions."""
    return library_source_hash("data.ingest.ingest", "data.corpus", libraries=("datasets",))


@step(cache_policy=CachePolicy(cache_func=f"{__name__}.cache_key"), output_materializers=CORPUS)
def ingest(sources: Manifest, config: IngestConfig) -> Annotated[Corpus, "records"]:
    """Read the files whose hashes the step `resolve` recorded."""
    return data_sources.ingest(sources, config)
