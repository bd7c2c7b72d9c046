"""A corpus: rows in named splits, what they are, and what happened to them on the way.

`identity` is part of the content hash, as the rows are: a tokenizer's hash, a mask policy. `counts` is not: how many
rows were refused or dropped, shares, coverage. So a run whose rows came out equal is cached, and each run still has
its counts.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, load_from_disk

from tuneline.identity import canonical_json

ABOUT = "corpus.json"


@dataclass(frozen=True)
class Corpus:
    """Rows by split, with identity and counts (both JSON-able)."""

    splits: dict[str, Dataset]
    identity: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)

    def only(self) -> Dataset:
        """Return the rows of a corpus with one split."""
        (rows,) = self.splits.values()
        return rows

    def content_hash(self) -> str:
        """Hash the values of all rows and the identity."""
        parts = {name: rows_hash(rows) for name, rows in self.splits.items()}
        return hashlib.sha256(canonical_json([parts, self.identity]).encode()).hexdigest()

    def num_rows(self) -> dict[str, int]:
        """Count the rows of each split."""
        return {name: rows.num_rows for name, rows in self.splits.items()}

    def save(self, folder: Path) -> None:
        """Write one Arrow directory a split, and what the corpus says of itself."""
        for name, rows in self.splits.items():
            rows.save_to_disk(str(folder / name))
        about = {"splits": list(self.splits), "identity": self.identity, "counts": self.counts}
        (folder / ABOUT).write_text(json.dumps(about, indent=1))

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        """Open what `save` wrote; rows are memory-mapped where they lie."""
        about = json.loads((folder / ABOUT).read_text())
        splits = {name: load_from_disk(str(folder / name)) for name in about["splits"]}
        return cls(splits, about["identity"], about["counts"])


def rows_hash(rows: Dataset) -> str:
    """Hash values; `take` lays them out anew, so that chunks and slices of equal rows become equal bytes."""
    digest = hashlib.sha256(str(rows.features).encode())
    for table in rows.with_format("arrow").iter(batch_size=4096):
        plain = table.replace_schema_metadata(None).combine_chunks().take(pa.array(range(len(table))))
        for batch in plain.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()
