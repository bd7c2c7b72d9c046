"""Hashes of the training and held-out examples of a version, 16 bytes each.

A champion may have been trained on examples that a new model holds out, after a change of fraction, seed or source.
Both are then compared on the other items only, so that memorized items do not count.
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
"""Bytes per hash; among a billion examples, the probability of a collision is about 1e-21."""


@dataclass(frozen=True)
class TrainingRows:
    """Hashes of the examples of a version."""

    ids: NDArray[np.bytes_]
    """Ids of the training examples, sorted and unique."""

    prompts: NDArray[np.bytes_]
    """Hashes of their prompts; for a text without a prompt, of the text."""

    held_out: NDArray[np.uint8]
    """Full ids of the held-out examples [rows, 32], as in reports."""

    keys: NDArray[np.bytes_]
    """For each held-out example its id, or the hash of its prompt if the split is by prompt."""

    def save(self, path: Path) -> None:
        """Write the hashes."""
        np.savez(path, **{field.name: values for field, values in zip(fields(self), astuple(self), strict=True)})

    @classmethod
    def load(cls, path: Path) -> "TrainingRows":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{field.name: stored[field.name] for field in fields(cls)})

    def seen_by(self, other: "TrainingRows") -> set[str]:
        """Return the ids of held-out examples whose id or prompt is in the training rows of another version."""
        short_ids = _shorten(self.held_out)
        seen = np.isin(short_ids, other.ids) | np.isin(self.keys, other.prompts)
        return {row.tobytes().hex() for row in self.held_out[seen]}


def from_mixture(mixture: Corpus, split_by: str) -> TrainingRows:
    """Read the hashes from a mixture.

    Args:
        mixture: Output of `merge`.
        split_by: The recipe's `merge.split_by`.
    """
    train, held_out = mixture.splits["train"], mixture.splits["validation"]
    ids, prompts = _collect(train, "prompt")
    held_ids, keys = _collect(held_out, split_by)
    return TrainingRows(np.unique(_shorten(ids)), np.unique(_shorten(prompts)), held_ids, _shorten(keys))


def _collect(rows: Dataset, split_by: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the ids of all rows and the keys of the split, in full [rows, 32]."""
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


def _shorten(hashes: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(hashes[:, :HASH_BYTES]).view(f"S{HASH_BYTES}")[:, 0]
