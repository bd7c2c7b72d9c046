"""Step: one data set's files -> records with their places."""

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
    """What the cache key sees beside this step."""
    return library_source_hash("data.ingest.ingest", "data.corpus", libraries=("datasets",))


@step(cache_policy=CachePolicy(cache_func=f"{__name__}.watched"), output_materializers=CORPUS)
def ingest(sources: Manifest, config: IngestConfig) -> Annotated[Corpus, "records"]:
    """Read exactly the bytes that were resolved."""
    return data_sources.ingest(sources, config)
