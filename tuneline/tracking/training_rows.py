"""Which examples a version was trained on, and which it held out: known by 16 bytes of their hash each.

A champion may have been trained on what a new model holds out, after another share, seed or source. Both are then
compared on the other items alone, so that memory is not taken for skill.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from tuneline.data.corpus import Corpus, iter_batches
from tuneline.data.mixture import merge

HASH_BYTES = 16
"""Of each hash; two of a billion examples share theirs with a probability of 1e-21."""


@dataclass(frozen=True)
class TrainingRows:
    """Hashes of the examples behind a version."""

    ids: NDArray[np.bytes_]
    """Of the examples in the training split; sorted, each once."""

    prompts: NDArray[np.bytes_]
    """Of their prompts; a text, which has none, is its own."""

    held_out: NDArray[np.uint8]
    """Ids of the held-out examples [rows, 32], whole, as reports name them."""

    keys: NDArray[np.bytes_]
    """Of each held-out example: its id, or, where the split goes by it, its prompt."""

    def save(self, path: Path) -> None:
        """Write the hashes."""
        np.savez(path, **{field.name: values for field, values in zip(fields(self), astuple(self), strict=True)})

    @classmethod
    def load(cls, path: Path) -> "TrainingRows":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{field.name: stored[field.name] for field in fields(cls)})

    def seen_by(self, other: "TrainingRows") -> set[str]:
        """Return the ids of the held-out examples that another version was trained on, itself or its prompt."""
        short = _shortened(self.held_out)
        seen = np.isin(short, other.ids) | np.isin(self.keys, other.prompts)
        return {row.tobytes().hex() for row in self.held_out[seen]}


def from_mixture(mixture: Corpus, split_by: str) -> TrainingRows:
    """Read the hashes from a mixture.

    Args:
        mixture: What `merge` made.
        split_by: The recipe's `merge.split_by`.
    """
    train, held_out = mixture.splits["train"], mixture.splits["validation"]
    ids, prompts = _collected(train, "prompt")
    held_ids, keys = _collected(held_out, split_by)
    return TrainingRows(np.unique(_shortened(ids)), np.unique(_shortened(prompts)), held_ids, _shortened(keys))


def _collected(rows: Dataset, split_by: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the ids of all rows, and what decides about the side of each, whole [rows, 32]."""
    parts = list(_hashes(rows, split_by)) or [(np.empty((0, 32), np.uint8), np.empty((0, 32), np.uint8))]
    ids, keys = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(keys)


def _hashes(rows: Dataset, split_by: str) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    for batch in iter_batches(rows):
        ids = batch.column("id").to_pylist()
        keys = merge.split_keys(batch, ids, merge.example_kinds(batch), split_by)
        yield _from_hex(ids), _from_hex(keys)


def _from_hex(hashes: list[str]) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), 32)


def _shortened(hashes: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(hashes[:, :HASH_BYTES]).view(f"S{HASH_BYTES}")[:, 0]
