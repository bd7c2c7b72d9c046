"""Step: mixture -> packed token rows with loss masks."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers import CORPUS
from steps.caching import library_source_hash
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import tokenize
from tuneline.identity import Manifest


def cache_key() -> str:
    """Return what decides the result besides the inputs: library source and package versions."""
    return library_source_hash(
        "data.tokenization.tokenize", "data.corpus", libraries=("datasets", "transformers", "tokenizers", "jinja2")
    )


@step(cache_policy=CachePolicy(cache_func=f"{__name__}.cache_key"), output_materializers=CORPUS)
def tokenize_pack(mixture: Corpus, tokenizer: Manifest, config: TokenizeStepConfig) -> Annotated[Corpus, "rows"]:
    """Render with the chat template, encode, mask, pack."""
    return tokenize.tokenize_pack(mixture, tokenizer, config)
