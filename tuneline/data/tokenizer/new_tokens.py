"""New tokens: a copy of a tokenizer that has them, with a record of which ids they got.

Like a chat template, they belong to the tokenizer's identity. The record tells who loads the base model which rows are
to be made: by the sizes alone one could not tell, since vocabularies are padded. In the folder of a whole model nothing
is new, since the rows were trained with the rest.
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
        tokenizer: The base model's.
        new_tokens: Words; cut out of a text before anything else, shown in decoded answers.
        new_special_tokens: Marks, which decoded answers leave out.

    Returns:
        The manifest of a copy, or the one given where nothing is new.

    Raises:
        RecipeError: A token is in the vocabulary already.
    """
    if not new_tokens and not new_special_tokens:
        return tokenizer

    def change(grown: PreTrainedTokenizerBase) -> dict[str, str]:
        _check_new(grown, "load.new_tokens", new_tokens)
        _check_new(grown, "load.new_special_tokens", new_special_tokens)
        return {RECORD_FILE: _add(grown, new_tokens, new_special_tokens)}

    return derived_tokenizer.derive_tokenizer(tokenizer, [list(new_tokens), list(new_special_tokens)], change)


def new_token_ids(folder: Path) -> tuple[int, ...]:
    """Return the ids of a tokenizer's new tokens; none in the folder of a whole model."""
    if (folder / "config.json").is_file() or not (folder / RECORD_FILE).is_file():
        return ()
    return tuple(json.loads((folder / RECORD_FILE).read_text())["ids"])


def record_files(folder: Path) -> dict[str, str]:
    """Return the record of new tokens, by its file's name, for the copy of a tokenizer; empty where none is new."""
    return {RECORD_FILE: (folder / RECORD_FILE).read_text()} if new_token_ids(folder) else {}


def _check_new(tokenizer: PreTrainedTokenizerBase, key: str, tokens: Sequence[str]) -> None:
    vocabulary = tokenizer.get_vocab()
    for token in tokens:
        if token in vocabulary:
            raise RecipeError(
                f"{key}: {token!r} is in the vocabulary already, with id {vocabulary[token]}. Leave it out, or choose "
                "a text that is not."
            )


def _add(tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[str], special: Sequence[str]) -> str:
    """Add tokens, and return the record of the ids that they got."""
    tokens = [*new_tokens, *special]
    tokenizer.add_tokens(list(new_tokens))
    tokenizer.add_special_tokens({"extra_special_tokens": list(special)}, replace_extra_special_tokens=False)
    about = {"ids": tokenizer.convert_tokens_to_ids(tokens), "tokens": tokens}
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"
