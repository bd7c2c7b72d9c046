"""Load tokenizers; separate from tokenization, so that inference code does not depend on how rows are packed."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tuneline.data.tokenizer import template_sandbox
from tuneline.identity import Manifest


def load_tokenizer(manifest: Manifest) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a manifest."""
    return load_tokenizer_from(Path(manifest.only().location))


def load_tokenizer_from(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory; its chat templates render with limits."""
    template_sandbox.install()
    return AutoTokenizer.from_pretrained(folder)
