"""A model on disk: a directory, what kind it is, and what it was made from. Weights are never held here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tuneline.identity import digest, file_hashes

CheckpointKind = Literal["adapter", "merged", "full"]
METADATA_FILE = "checkpoint.json"
"""Lies beside the files of a stored model: what it is, and name and hash of each file."""

NON_CONTENT_FILES = ("README.md", "training_args.bin", "MLmodel", METADATA_FILE)


@dataclass(frozen=True)
class Checkpoint:
    """A directory with an adapter, or with a whole model.

    `identity` (base model, rows, method) is part of the content hash; `facts` (fidelity of a merge) are not.
    """

    path: Path
    kind: CheckpointKind
    identity: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    """Content hash, known once it was stored."""

    disposable: bool = False
    """The maker owns `path`, a scratch folder: the files may be moved into the artifact."""

    def content_hash(self) -> str:
        """Hash weights, configs, tokenizer, template and identity; no times, runs or environment."""
        return self.sha256 or compute_content_hash(self.kind, self.identity, self.files())

    def files(self) -> list[list[str]]:
        """Return name and sha256 of each file that counts."""
        return file_hashes(self.path, ignore=NON_CONTENT_FILES)

    def num_bytes(self) -> int:
        """Add up the sizes of the files."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())


def compute_content_hash(kind: str | None, identity: dict[str, Any] | None, files: list[list[str]]) -> str:
    """Return the content hash of a model with these files (name and sha256, in order)."""
    return digest([kind, identity, digest(files)])
