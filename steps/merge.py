"""Step: examples of all data sets -> one mixture with a held-out part."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers import CORPUS
from steps.caching import code_behind
from tuneline.config.data import MergeConfig
from tuneline.data import merge as mixing
from tuneline.data.corpus import Corpus
from tuneline.identity import Manifest


def watched() -> str:
    """What the cache key sees beside this step."""
    return code_behind("data.merge", "data.corpus", libraries=("datasets",))


@step(cache_policy=CachePolicy(cache_func=f"{__name__}.watched"), output_materializers=CORPUS)
def merge(examples: list[Corpus], benchmarks: Manifest, config: MergeConfig) -> Annotated[Corpus, "sft_mixture"]:
    """Join the data sets, hold some examples out, look for the exams in the rest."""
    return mixing.merge(examples, benchmarks, config)
