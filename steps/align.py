"""Step: records of one dataset -> examples in the common schema."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers import CORPUS
from steps.caching import library_source_hash
from tuneline.config.sections.sources import AlignConfig
from tuneline.data.align import align as alignment
from tuneline.data.corpus import Corpus


def cache_key() -> str:
    """Return what decides the result besides the inputs: library source and package versions."""
    return library_source_hash("data.align.align", "data.corpus", libraries=("datasets",))


@step(cache_policy=CachePolicy(cache_func=f"{__name__}.cache_key"), output_materializers=CORPUS)
def align(records: Corpus, config: AlignConfig) -> Annotated[Corpus, "examples"]:
    """Convert every record to an example."""
    examples = alignment.align(records, config)
    alignment.warn_about_unknown_keys(examples)
    return examples
