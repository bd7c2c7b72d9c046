"""Step: examples of all data sets -> one mixture with a held-out part."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers import CORPUS
from steps.caching import library_source_hash
from tuneline.config.sections.data import MergeStepConfig
from tuneline.data.corpus import Corpus
from tuneline.data.mixture import merge as merging
from tuneline.identity import Manifest


def cache_key() -> str:
    """What the cache key sees beside this step."""
    return library_source_hash("data.mixture.merge", "data.corpus", libraries=("datasets", "numpy"))


@step(cache_policy=CachePolicy(cache_func=f"{__name__}.watched"), output_materializers=CORPUS)
def merge(examples: list[Corpus], benchmarks: Manifest, config: MergeStepConfig) -> Annotated[Corpus, "mixture"]:
    """Mix the data sets, hold some examples out, look for all evaluation sets in the rest."""
    return merging.merge(examples, benchmarks, config)
