"""A model on disk: a directory, what kind it is, and what it was made from. Weights are never held here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tuneline.identity import digest, tree_hash

Kind = Literal["adapter", "merged", "full"]
NOT_CONTENT = ("README.md", "training_args.bin", "MLmodel", "checkpoint.json")


@dataclass(frozen=True)
class Checkpoint:
    """A directory with an adapter, or with a whole model.

    `identity` (base model, rows, method) is part of the content hash; `facts` (fidelity of a merge) are not.
    """

    path: Path
    kind: Kind
    identity: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    """Content hash, known once it was stored."""

    disposable: bool = False
    """The maker owns `path`, a scratch folder: the files may be moved into the artifact."""

    def content_hash(self) -> str:
        """Hash weights, configs, tokenizer, template and identity; no times, runs or environment."""
        return self.sha256 or digest([self.kind, self.identity, tree_hash(self.path, ignore=NOT_CONTENT)])

    def num_bytes(self) -> int:
        """Add up the sizes of the files."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
