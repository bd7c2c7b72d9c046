"""New tokens: a copy of a tokenizer that has them, with a record of which ids they got.

Like a chat template, they belong to the tokenizer's identity. The record tells who loads the base model which rows are
to be made: by the sizes alone one could not tell, since vocabularies are padded. In the folder of a whole model nothing
is new, since the rows were trained with the rest.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tuneline import state
from tuneline.data.tokenizer import load_tokenizer_from
from tuneline.errors import RecipeError
from tuneline.identity import Located, Manifest, digest, file_entries

RECORD = "new_tokens.json"


def with_tokens(tokenizer: Manifest, new_tokens: Sequence[str], new_special_tokens: Sequence[str]) -> Manifest:
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
    was = tokenizer.only()
    key = digest([tokenizer.content_hash(), list(new_tokens), list(new_special_tokens)])
    target = state.folder("tokenizers") / key[:32]
    if not target.is_dir():
        grown = load_tokenizer_from(Path(was.location))
        _check_new(grown, "load.new_tokens", new_tokens)
        _check_new(grown, "load.new_special_tokens", new_special_tokens)
        _write(grown, new_tokens, new_special_tokens, target)
    files = file_entries(target, [path for path in target.iterdir() if path.is_file()])
    located = Located(name=was.name, location=str(target), source=was.source, licence=was.licence, files=files)
    return Manifest(kind=tokenizer.kind, items=[located])


def new_ids(folder: Path) -> tuple[int, ...]:
    """Return the ids of a tokenizer's new tokens; none in the folder of a whole model."""
    if (folder / "config.json").is_file() or not (folder / RECORD).is_file():
        return ()
    return tuple(json.loads((folder / RECORD).read_text())["ids"])


def keep_record(folder: Path, copy: Path) -> None:
    """Let the copy of a tokenizer know, too, which of its tokens are new."""
    if new_ids(folder):
        shutil.copy2(folder / RECORD, copy / RECORD)


def _check_new(tokenizer: PreTrainedTokenizerBase, key: str, tokens: Sequence[str]) -> None:
    vocabulary = tokenizer.get_vocab()
    for token in tokens:
        if token in vocabulary:
            raise RecipeError(
                f"{key}: {token!r} is in the vocabulary already, with id {vocabulary[token]}. Leave it out, or choose "
                "a text that is not."
            )


def _write(tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[str], special: Sequence[str], target: Path) -> None:
    tokens = [*new_tokens, *special]
    tokenizer.add_tokens(list(new_tokens))
    tokenizer.add_special_tokens({"extra_special_tokens": list(special)}, replace_extra_special_tokens=False)
    record = {"ids": tokenizer.convert_tokens_to_ids(tokens), "tokens": tokens}
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    tokenizer.save_pretrained(scratch)
    _forget_the_machine(scratch / "tokenizer_config.json")
    (scratch / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    try:
        scratch.rename(target)
    except OSError:  # another run wrote the same
        shutil.rmtree(scratch)


def _forget_the_machine(path: Path) -> None:
    about = {name: value for name, value in json.loads(path.read_text()).items() if name != "name_or_path"}
    path.write_text(json.dumps(about, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
