"""Step: checkpoint -> a whole model that transformers loads, proven to be the same."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers import CHECKPOINT
from steps.caching import library_source_hash
from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.training.base import MergeAdapterConfig
from tuneline.data.corpus import Corpus
from tuneline.identity import Manifest
from tuneline.model import merge as merging
from tuneline.model import verification
from tuneline.model.checkpoint import Checkpoint


def cache_key() -> str:
    """What the cache key sees beside this step."""
    libraries = ("torch", "transformers", "peft", "bitsandbytes")
    modules = ("model.merge", "model.checkpoint", "model.verification", "data.corpus")
    return library_source_hash(*modules, libraries=libraries)


@step(cache_policy=CachePolicy(cache_func=f"{__name__}.watched"), output_materializers=CHECKPOINT)
def merge_adapter(
    checkpoint: Checkpoint,
    base_model: Manifest,
    tokenizer: Manifest,
    rows: Corpus,
    load: LoadStepConfig,
    config: MergeAdapterConfig,
) -> Annotated[Checkpoint, "{stage}_model"]:
    """Fold the adapter into the base and measure that nothing else changed."""
    verification.check_manifests(base_model, tokenizer)
    return merging.merge_adapter(checkpoint, base_model, tokenizer, rows, load, config)
