"""Step: checkpoint -> a whole model that transformers loads, proven to be the same."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers import CHECKPOINT
from steps.caching import code_behind
from tuneline.config.train import MergeAdapterConfig
from tuneline.data.corpus import Corpus
from tuneline.identity import Manifest
from tuneline.model import merge as merging
from tuneline.model.checkpoint import Checkpoint


def watched() -> str:
    """What the cache key sees beside this step."""
    return code_behind("model.merge", "model.checkpoint", "data.corpus", libraries=("torch", "transformers", "peft"))


@step(cache_policy=CachePolicy(cache_func=f"{__name__}.watched"), output_materializers=CHECKPOINT)
def merge_adapter(
    checkpoint: Checkpoint, base_model: Manifest, tokenizer: Manifest, rows: Corpus, config: MergeAdapterConfig
) -> Annotated[Checkpoint, "sft_model"]:
    """Fold the adapter into the base and measure that nothing else changed."""
    return merging.merge_adapter(checkpoint, base_model, tokenizer, rows, config)
