"""Step: examples of all datasets -> one mixture, split into training and validation rows."""

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
    """Return what decides the result besides the inputs: library source and package versions."""
    return library_source_hash("data.mixture.merge", "data.corpus", libraries=("datasets", "numpy"))


@step(cache_policy=CachePolicy(cache_func=f"{__name__}.cache_key"), output_materializers=CORPUS)
def merge(examples: list[Corpus], benchmarks: Manifest, config: MergeStepConfig) -> Annotated[Corpus, "mixture"]:
    """Mix the datasets, hold out validation examples, search the training rows for evaluation items."""
    return merging.merge(examples, benchmarks, config)
