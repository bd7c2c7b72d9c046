"""A model on disk: its directory, kind and identity. Weights are not loaded."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tuneline.identity import digest, file_hashes

CheckpointKind = Literal["adapter", "merged", "full"]
METADATA_FILE = "checkpoint.json"
"""File next to a stored model with its kind, identity, and the name and hash of each file."""

NON_CONTENT_FILES = ("README.md", "training_args.bin", "MLmodel", METADATA_FILE)


@dataclass(frozen=True)
class Checkpoint:
    """A directory with an adapter or a whole model.

    `identity` (base model, rows, method) is part of the content hash; `facts` (like the KL divergence of a merge) are
    not.
    """

    path: Path
    kind: CheckpointKind
    identity: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    """Content hash, set once the checkpoint is stored."""

    disposable: bool = False
    """Whether `path` is a scratch folder whose files may be moved into the artifact."""

    def content_hash(self) -> str:
        """Hash weights, configs, tokenizer, template and identity, but not times, runs or environment."""
        return self.sha256 or compute_content_hash(self.kind, self.identity, self.files())

    def files(self) -> list[list[str]]:
        """Return name and sha256 of each file that is part of the content hash."""
        return file_hashes(self.path, ignore=NON_CONTENT_FILES)

    def num_bytes(self) -> int:
        """Return the total size of the files."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())


def compute_content_hash(kind: str | None, identity: dict[str, Any] | None, files: list[list[str]]) -> str:
    """Return the content hash of a model with these files (name and sha256 of each, in order)."""
    return digest([kind, identity, digest(files)])
