"""Step: checkpoint -> merged model that transformers loads, with its divergence from the adapter measured."""

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
    """Return what decides the result besides the inputs: library source and package versions."""
    libraries = ("torch", "transformers", "peft", "bitsandbytes")
    modules = ("model.merge", "model.checkpoint", "model.verification", "data.corpus")
    return library_source_hash(*modules, libraries=libraries)


@step(cache_policy=CachePolicy(cache_func=f"{__name__}.cache_key"), output_materializers=CHECKPOINT)
def merge_adapter(
    checkpoint: Checkpoint,
    base_model: Manifest,
    tokenizer: Manifest,
    rows: Corpus,
    load: LoadStepConfig,
    config: MergeAdapterConfig,
) -> Annotated[Checkpoint, "{stage}_model"]:
    """Merge the adapter into the base model and check that the outputs stay the same."""
    verification.check_manifests(base_model, tokenizer)
    return merging.merge_adapter(checkpoint, base_model, tokenizer, rows, load, config)
