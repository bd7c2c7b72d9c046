"""Derived tokenizers: modified copies of a tokenizer, identified by the hash of their files."""

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
    """Write a modified copy of a tokenizer, or reuse the copy that exists; safe for concurrent processes.

    Args:
        tokenizer_manifest: The tokenizer to start from.
        key: Identifies the change; must be JSON-serializable.
        change: Modifies the loaded tokenizer, and returns the text of additional files by name.

    Returns:
        The manifest of the copy.
    """
    original = tokenizer_manifest.only()
    target = state.folder("tokenizers") / digest([tokenizer_manifest.content_hash(), *key])[:32]
    if not checksums.is_usable_copy(target):
        tokenizer = load_tokenizer(tokenizer_manifest)
        extra_files = change(tokenizer)
        scratch = Path(tempfile.mkdtemp(dir=target.parent))
        tokenizer.save_pretrained(scratch)
        _remove_local_path(scratch / "tokenizer_config.json")
        for name, text in extra_files.items():
            (scratch / name).write_text(text)
        checksums.write_for_copy(scratch, target)
        try:
            scratch.rename(target)
        except OSError:  # another process wrote the same copy
            shutil.rmtree(scratch)
    files = file_entries(target, [path for path in target.iterdir() if path.is_file()])
    located = Located(
        name=original.name, location=str(target), source=original.source, licence=original.licence, files=files
    )
    return Manifest(kind=tokenizer_manifest.kind, items=[located])


def _remove_local_path(path: Path) -> None:
    """Remove the entry that contains a path of this machine."""
    config = {name: value for name, value in json.loads(path.read_text()).items() if name != "name_or_path"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
