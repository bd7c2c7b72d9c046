"""New tokens: a copy of a tokenizer with additional tokens, and a record of their ids.

New tokens are part of the tokenizer's identity, as is the chat template. The record tells the model loader which
embedding rows to create; sizes do not suffice, because vocabularies are padded. In the folder of a whole model there
are no new tokens, because their embedding rows were trained with the others.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tuneline.data.tokenizer import derived_tokenizer
from tuneline.errors import RecipeError
from tuneline.identity import Manifest

RECORD_FILE = "new_tokens.json"


def add_new_tokens(tokenizer: Manifest, new_tokens: Sequence[str], new_special_tokens: Sequence[str]) -> Manifest:
    """Add tokens to a tokenizer.

    Args:
        tokenizer: The base model's tokenizer.
        new_tokens: Tokens that are split off before any other tokenization, and shown in decoded answers.
        new_special_tokens: Special tokens, which decoded answers omit.

    Returns:
        The manifest of a copy, or `tokenizer` if there are no new tokens.

    Raises:
        RecipeError: A token is already in the vocabulary.
    """
    if not new_tokens and not new_special_tokens:
        return tokenizer

    def change(copy: PreTrainedTokenizerBase) -> dict[str, str]:
        _check_new(copy, "load.new_tokens", new_tokens)
        _check_new(copy, "load.new_special_tokens", new_special_tokens)
        return {RECORD_FILE: _add(copy, new_tokens, new_special_tokens)}

    return derived_tokenizer.derive_tokenizer(tokenizer, [list(new_tokens), list(new_special_tokens)], change)


def new_token_ids(folder: Path) -> tuple[int, ...]:
    """Return the ids of a tokenizer's new tokens; empty in the folder of a whole model."""
    if (folder / "config.json").is_file() or not (folder / RECORD_FILE).is_file():
        return ()
    return tuple(json.loads((folder / RECORD_FILE).read_text())["ids"])


def record_files(folder: Path) -> dict[str, str]:
    """Return the record of new tokens by file name, to be written into a copy; empty without new tokens."""
    return {RECORD_FILE: (folder / RECORD_FILE).read_text()} if new_token_ids(folder) else {}


def _check_new(tokenizer: PreTrainedTokenizerBase, key: str, tokens: Sequence[str]) -> None:
    vocabulary = tokenizer.get_vocab()
    for token in tokens:
        if token in vocabulary:
            raise RecipeError(
                f"{key}: {token!r} is already in the vocabulary, with id {vocabulary[token]}. Remove it, or choose "
                "another token."
            )


def _add(tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[str], special: Sequence[str]) -> str:
    """Add tokens, and return the record of their ids as JSON."""
    tokens = [*new_tokens, *special]
    tokenizer.add_tokens(list(new_tokens))
    tokenizer.add_special_tokens({"extra_special_tokens": list(special)}, replace_extra_special_tokens=False)
    record = {"ids": tokenizer.convert_tokens_to_ids(tokens), "tokens": tokens}
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"
