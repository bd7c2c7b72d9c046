"""A copy of a tokenizer with something changed: what belongs to a tokenizer is known by the tokenizer's bytes."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline import checksums, state
from tuneline.data.tokenizer.loader import load_tokenizer
from tuneline.identity import Located, Manifest, digest, file_entries


def derive_tokenizer(
    tokenizer_manifest: Manifest, key: list[Any], change: Callable[[PreTrainedTokenizerBase], Mapping[str, str]]
) -> Manifest:
    """Write a changed copy of a tokenizer, once; two processes write it once.

    Args:
        tokenizer_manifest: The tokenizer to start from.
        key: What tells this change from others, JSON-able.
        change: Changes the loaded tokenizer, and returns the text of files to lay beside it, by name.

    Returns:
        The manifest of the copy.
    """
    was = tokenizer_manifest.only()
    target = state.folder("tokenizers") / digest([tokenizer_manifest.content_hash(), *key])[:32]
    if not checksums.is_usable_copy(target):
        tokenizer = load_tokenizer(tokenizer_manifest)
        beside = change(tokenizer)
        scratch = Path(tempfile.mkdtemp(dir=target.parent))
        tokenizer.save_pretrained(scratch)
        _forget_the_machine(scratch / "tokenizer_config.json")
        for name, text in beside.items():
            (scratch / name).write_text(text)
        checksums.write_for_copy(scratch, target)
        try:
            scratch.rename(target)
        except OSError:  # another run wrote the same
            shutil.rmtree(scratch)
    files = file_entries(target, [path for path in target.iterdir() if path.is_file()])
    located = Located(name=was.name, location=str(target), source=was.source, licence=was.licence, files=files)
    return Manifest(kind=tokenizer_manifest.kind, items=[located])


def _forget_the_machine(path: Path) -> None:
    """Leave out what names a place on this machine."""
    about = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("name_or_path",)}
    path.write_text(json.dumps(about, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
