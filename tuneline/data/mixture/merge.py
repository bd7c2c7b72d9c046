"""Merge: combines datasets to one mixture with a validation split, without exact copies, checked for contamination.

A hash of an example's content, or of its prompt, decides whether it is held out. Adding or removing other datasets
therefore does not move it to the other split, and equal examples are in the same split. Rows are read twice: once for
the split (ids, prompts, kinds), once to be written in their final order. In between, about fifty bytes per row are kept
in memory.
"""

import hashlib
from dataclasses import dataclass
from itertools import chain
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from tuneline.config.sections.data import HELD_OUT, MIN_HELD_OUT, MergeConfig, MergeStepConfig, SourceShare
from tuneline.data import schema
from tuneline.data.corpus import Corpus, iter_batches
from tuneline.data.mixture import contamination, interleave
from tuneline.data.mixture.contamination import ContaminationResult
from tuneline.data.mixture.interleave import RowMask
from tuneline.errors import DataError
from tuneline.identity import Manifest, digest

KINDS = get_args(schema.Kind)


@dataclass(frozen=True)
class RowAttributes:
    """Attributes of all rows, one dataset after another: one value per row."""

    ids: NDArray[np.bytes_]
    """First 16 bytes of the hash of the content. [rows]"""

    held_out: NDArray[np.bool_]
    """Whether the row is in the validation split, unless it is a copy. [rows]"""

    kinds: NDArray[np.uint8]
    """Positions in `KINDS`. [rows]"""


def merge(examples: list[Corpus], exams: Manifest, config: MergeStepConfig) -> Corpus:
    """Mix datasets, drop exact copies, hold out a validation split, and check the rest for contamination.

    Args:
        examples: One corpus per dataset, in the order of the recipe.
        exams: Exams whose questions are compared with the training examples.
        config: Strategy, held-out fraction, seeds, and the share of each dataset; a dataset without a share counts
            once.

    Returns:
        Splits `train` and `validation` (rows of `MIXED`), and `contamination` (one row per item of an evaluation set
        that a training example holds).

    Raises:
        DataError: Kinds are mixed, no training example is left, too few examples are held out, or too few items of the
            gate's evaluation sets are clean.
    """
    rows, shares = [corpus.only() for corpus in examples], _shares(examples, config)
    train, held_out, kind = _split(rows, shares, config)
    train_order = interleave.draw_order([_size(mask) for mask in train], shares, config)
    held_out_order = interleave.concatenate_order([_size(mask) for mask in held_out])
    splits = {
        "train": interleave.write_mixture(rows, train, train_order),
        "validation": interleave.write_mixture(rows, held_out, held_out_order),
    }
    result = contamination.find_contamination(splits["train"], splits["validation"], exams, config.boilerplate_rows)
    _check_num_clean(result, splits["validation"], config)
    by_source = _counts_by_source(shares, train, held_out, train_order)
    counts = {
        "sources": [corpus.counts | corpus.identity for corpus in examples],
        "by_source": by_source,
        "kind": kind,
        "examples": sum(map(_size, train)) + len(held_out_order),
        "exact_copies_dropped": sum(source["exact_copies_dropped"] for source in by_source.values()),
        "train": len(train_order),
        "validation": len(held_out_order),
        "train_share": {
            name: round(source["train"] / len(train_order), 4) for name, source in sorted(by_source.items())
        },
        "contamination": result.counts,
        "boilerplate": result.boilerplate,
    }
    return Corpus({**splits, "contamination": result.rows}, {}, counts)


def _split(
    rows: list[Dataset], shares: list[SourceShare], config: MergeConfig
) -> tuple[list[RowMask], list[RowMask], str]:
    """Return masks of the training rows and of the held-out rows of each dataset, and the kind of all examples."""
    attributes = scan_rows(rows, config)
    ends = np.cumsum([part.num_rows for part in rows])[:-1]
    kind = _single_kind(np.split(attributes.kinds, ends), shares)
    first = first_occurrences(attributes.ids)
    train, held_out = (np.split(first & mask, ends) for mask in (~attributes.held_out, attributes.held_out))
    _check_sizes(sum(map(_size, train)), sum(map(_size, held_out)), len(first) - _size(first), config)
    return train, held_out, kind


def _size(mask: RowMask) -> int:
    return int(np.count_nonzero(mask))


def scan_rows(examples: list[Dataset], config: MergeConfig) -> RowAttributes:
    """Read all rows once and return the attributes that decide about their split."""
    num_rows = sum(rows.num_rows for rows in examples)
    attributes = RowAttributes(np.empty(num_rows, "S16"), np.empty(num_rows, np.bool_), np.empty(num_rows, np.uint8))
    start = 0
    for batch in chain.from_iterable(map(iter_batches, examples)):
        here = slice(start, start + batch.num_rows)
        ids = batch.column("id").to_pylist()
        attributes.ids[here] = np.frombuffer(bytes.fromhex("".join(ids)), "S32").astype("S16")
        attributes.kinds[here] = example_kinds(batch)
        keys = split_keys(batch, ids, attributes.kinds[here], config.split_by)
        attributes.held_out[here] = held_out_mask(keys, config.validation_fraction, config.split_seed)
        start += batch.num_rows
    return attributes


def split_keys(batch: pa.RecordBatch, ids: list[str], kinds: NDArray[np.uint8], split_by: str) -> list[str]:
    """Return the key that decides the split of each example: its id, or the hash of its prompt."""
    keys = list(ids)
    grouped = {"auto": ("preference", "kto"), "prompt": ("chat", "preference", "kto"), "example": ()}[split_by]
    rows = np.flatnonzero(np.isin(kinds, [KINDS.index(name) for name in grouped]))
    examples = schema.from_arrow_batch(batch.take(pa.array(rows)), ["messages", "tools"])
    for row, example in zip(rows, examples, strict=True):
        prompt = example["messages"] if KINDS[kinds[row]] == "preference" else example["messages"][:-1]
        turns = [[turn["role"], turn["content"], turn["tool_calls"]] for turn in prompt]
        keys[row] = digest([turns, example["tools"]])
    return keys


def held_out_mask(keys: list[str], fraction: float, seed: int = 0) -> NDArray[np.bool_]:
    """Return which examples are held out, given their keys; equal keys are in the same split."""
    hashes = (hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8] for key in keys)
    points: NDArray[np.float64] = np.frombuffer(b"".join(hashes), ">u8") / 2.0**64
    return points < fraction


def example_kinds(batch: pa.RecordBatch) -> NDArray[np.uint8]:
    """Return the kinds of examples as positions in `KINDS`, by the rules of `schema.kind`."""
    rules = {
        "text": pc.not_equal(batch.column("text"), ""),
        "preference": pc.greater(pc.list_value_length(batch.column("chosen")), 0),
        "kto": pc.is_valid(batch.column("label")),
    }
    conditions = [rule.to_numpy(zero_copy_only=False) for rule in rules.values()]
    return np.select(conditions, [KINDS.index(name) for name in rules], KINDS.index("chat")).astype(np.uint8)


def first_occurrences(ids: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """Return a mask of the rows that are the first with their id."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    first = np.ones(len(ids), np.bool_)
    first[order[1:]] = ordered[1:] != ordered[:-1]
    return first


def _shares(examples: list[Corpus], config: MergeStepConfig) -> list[SourceShare]:
    by_name = {share.name: share for share in config.shares}
    names = [corpus.identity["source"] for corpus in examples]
    return [by_name.get(name, SourceShare(name=name)) for name in names]


def _single_kind(kinds_by_source: list[NDArray[np.uint8]], shares: list[SourceShare]) -> str:
    counts = np.array([np.bincount(kinds, minlength=len(KINDS)) for kinds in kinds_by_source])
    present = np.flatnonzero(counts.sum(axis=0))
    if len(present) > 1:
        sources = [
            f"{share.name}: {', '.join(f'{row[kind]} {KINDS[kind]}' for kind in present if row[kind])}"
            for share, row in zip(shares, counts, strict=True)
            if row.any()
        ]
        raise DataError(
            f"sources hold examples of different kinds ({'; '.join(sources)}), but a recipe trains on one kind. "
            "Use a separate recipe for each kind."
        )
    return KINDS[present[0]] if len(present) else ""


def _check_sizes(num_train: int, num_held_out: int, num_copies: int, config: MergeConfig) -> None:
    copies = f" ({num_copies} exact copies were dropped)" if num_copies else ""
    if not num_train:
        raise DataError(
            f"merge.validation_fraction holds out every example{copies}, so there is no training example. Lower it."
        )
    if config.validation_fraction and num_held_out < MIN_HELD_OUT:
        raise DataError(
            f"merge.validation_fraction {config.validation_fraction} holds out {num_held_out} of "
            f"{num_train + num_held_out} examples{copies}; at least {MIN_HELD_OUT} are required. Raise it, or add "
            "rows."
        )


def _check_num_clean(result: ContaminationResult, validation: Dataset, config: MergeStepConfig) -> None:
    """Check that enough items of the gate's evaluation sets are in no training example."""
    for name in config.gate_sets:
        counts = result.counts[name]
        num_items, num_contaminated = counts["items"], counts["exact"] + counts["ngram"]
        if name == HELD_OUT and config.max_items is not None and config.max_items < num_items:
            scored = set(sorted(validation["id"])[: config.max_items])
            num_items, num_contaminated = len(scored), len(scored & _contaminated_items(result, name))
        if num_items - num_contaminated < MIN_HELD_OUT:
            raise DataError(_too_few_clean(name, num_items, num_contaminated, counts))


def _contaminated_items(result: ContaminationResult, name: str) -> set[str]:
    return {row["item"] for row in result.rows if row["benchmark"] == name}


def _too_few_clean(name: str, num_items: int, num_contaminated: int, counts: dict[str, int]) -> str:
    items = "held-out examples" if name == HELD_OUT else f"questions of {name}"
    return (
        f"{num_contaminated} of the {num_items} {items} that the gate compares are in the training examples "
        f"({counts['exact']} whole, {counts['ngram']} by a run of 13 words), so {num_items - num_contaminated} clean "
        f"ones are left; at least {MIN_HELD_OUT} are required. Remove them from the training data, add items, lower "
        "merge.boilerplate_rows if they only share wording, or set registry.gate.exclude_contaminated: false."
    )


def _counts_by_source(
    shares: list[SourceShare], train: list[RowMask], held_out: list[RowMask], order: interleave.SourceOrder
) -> dict[str, dict[str, int]]:
    """Count the examples of each dataset; `train` counts rows, so an example drawn twice counts twice."""
    num_drawn = np.bincount(order, minlength=len(shares)).tolist()
    return {
        share.name: {
            "examples": len(train_mask),
            "exact_copies_dropped": len(train_mask) - _size(train_mask) - _size(validation_mask),
            "repeats": share.repeats,
            "train": num_rows,
            "train_never_drawn": max(_size(train_mask) - num_rows, 0),
            "validation": _size(validation_mask),
        }
        for share, train_mask, validation_mask, num_rows in zip(shares, train, held_out, num_drawn, strict=True)
    }
