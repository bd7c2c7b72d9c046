"""Merge: examples of several data sets -> one mixture with a held-out part, free of copies, checked for contamination.

Whether an example is held out follows from its content alone, or its prompt's (a hash, compared with the fraction), so
it stays on its side when others come and go, and equal examples stand on one side. Rows are read twice: once for what
decides (ids, prompts, kinds), once to be written in their final order; between the two some fifty bytes a row are kept.
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
    """What is known of all rows, data set after data set, before any is written: one value a row."""

    ids: NDArray[np.bytes_]
    """The first 16 bytes of the content's hash."""

    held_out: NDArray[np.bool_]
    """The side, were the row to stay."""

    kinds: NDArray[np.uint8]
    """Positions in `KINDS`."""


def merge(examples: list[Corpus], exams: Manifest, config: MergeStepConfig) -> Corpus:
    """Mix data sets, drop exact copies, hold some out, look for the evaluation sets in the rest.

    Args:
        examples: One corpus a data set, in the recipe's order.
        exams: Exams whose questions are looked for in the training examples.
        config: Strategy, held-out share, seeds, and each data set's share; one that is not given counts once.

    Returns:
        Splits `train` and `validation` (rows of `MIXED`), and `contamination` (a row for each item of an evaluation set
        that a training example holds).

    Raises:
        DataError: Kinds are mixed, nothing is left to train on, too few are held out, or too few items of what the gate
            judges by are clean.
    """
    rows, shares = [corpus.only() for corpus in examples], _shares(examples, config)
    train, held_out, kind = _sides(rows, shares, config)
    order = interleave.draw_order([_size(side) for side in train], shares, config)
    one_by_one = interleave.concatenate_order([_size(side) for side in held_out])
    splits = {
        "train": interleave.write_mixture(rows, train, order),
        "validation": interleave.write_mixture(rows, held_out, one_by_one),
    }
    found = contamination.find_contamination(splits["train"], splits["validation"], exams, config.boilerplate_rows)
    _check_clean(found, splits["validation"], config)
    by_source = _by_source(shares, train, held_out, order)
    counts = {
        "sources": [corpus.counts | corpus.identity for corpus in examples],
        "by_source": by_source,
        "kind": kind,
        "examples": sum(map(_size, train)) + len(one_by_one),
        "exact_copies_dropped": sum(source["exact_copies_dropped"] for source in by_source.values()),
        "train": len(order),
        "validation": len(one_by_one),
        "train_share": {name: round(source["train"] / len(order), 4) for name, source in sorted(by_source.items())},
        "contamination": found.counts,
        "boilerplate": found.boilerplate,
    }
    return Corpus({**splits, "contamination": found.rows}, {}, counts)


def _sides(
    rows: list[Dataset], shares: list[SourceShare], config: MergeConfig
) -> tuple[list[RowMask], list[RowMask], str]:
    """Return which rows of each data set are trained on, which are held out, and the kind of all."""
    facts = scan_rows(rows, config)
    ends = np.cumsum([part.num_rows for part in rows])[:-1]
    kind = _one_kind(np.split(facts.kinds, ends), shares)
    first = first_occurrences(facts.ids)
    train, held_out = (np.split(first & side, ends) for side in (~facts.held_out, facts.held_out))
    _check_sizes(sum(map(_size, train)), sum(map(_size, held_out)), len(first) - _size(first), config)
    return train, held_out, kind


def _size(side: RowMask) -> int:
    return int(np.count_nonzero(side))


def scan_rows(examples: list[Dataset], config: MergeConfig) -> RowAttributes:
    """Read all rows once for what decides about them."""
    num_rows = sum(rows.num_rows for rows in examples)
    facts = RowAttributes(np.empty(num_rows, "S16"), np.empty(num_rows, np.bool_), np.empty(num_rows, np.uint8))
    start = 0
    for batch in chain.from_iterable(map(iter_batches, examples)):
        here = slice(start, start + batch.num_rows)
        ids = batch.column("id").to_pylist()
        facts.ids[here] = np.frombuffer(bytes.fromhex("".join(ids)), "S32").astype("S16")
        facts.kinds[here] = example_kinds(batch)
        keys = split_keys(batch, ids, facts.kinds[here], config.split_by)
        facts.held_out[here] = held_out_mask(keys, config.validation_fraction, config.split_seed)
        start += batch.num_rows
    return facts


def split_keys(batch: pa.RecordBatch, ids: list[str], kinds: NDArray[np.uint8], split_by: str) -> list[str]:
    """Return what decides about each example's side: its id, or the hash of its prompt."""
    keys = list(ids)
    grouped = {"auto": ("preference", "kto"), "prompt": ("chat", "preference", "kto"), "example": ()}[split_by]
    rows = np.flatnonzero(np.isin(kinds, [KINDS.index(name) for name in grouped]))
    asked = schema.from_arrow_batch(batch.take(pa.array(rows)), ["messages", "tools"])
    for row, told in zip(rows, asked, strict=True):
        prompt = told["messages"] if KINDS[kinds[row]] == "preference" else told["messages"][:-1]
        keys[row] = digest([[[turn["role"], turn["content"], turn["tool_calls"]] for turn in prompt], told["tools"]])
    return keys


def held_out_mask(keys: list[str], fraction: float, seed: int = 0) -> NDArray[np.bool_]:
    """Decide the side of examples from their keys: equal ones stand on one side."""
    hashes = (hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8] for key in keys)
    points: NDArray[np.float64] = np.frombuffer(b"".join(hashes), ">u8") / 2.0**64
    return points < fraction


def example_kinds(batch: pa.RecordBatch) -> NDArray[np.uint8]:
    """Return the examples' kinds as positions in `KINDS`, by the rules of `schema.kind`."""
    rules = {
        "text": pc.not_equal(batch.column("text"), ""),
        "preference": pc.greater(pc.list_value_length(batch.column("chosen")), 0),
        "kto": pc.is_valid(batch.column("label")),
    }
    holds = [rule.to_numpy(zero_copy_only=False) for rule in rules.values()]
    return np.select(holds, [KINDS.index(name) for name in rules], KINDS.index("chat")).astype(np.uint8)


def first_occurrences(ids: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """Return which rows are the first with their id."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    first = np.ones(len(ids), np.bool_)
    first[order[1:]] = ordered[1:] != ordered[:-1]
    return first


def _shares(examples: list[Corpus], config: MergeStepConfig) -> list[SourceShare]:
    given = {share.name: share for share in config.shares}
    names = [corpus.identity["source"] for corpus in examples]
    return [given.get(name, SourceShare(name=name)) for name in names]


def _one_kind(kinds_by_source: list[NDArray[np.uint8]], shares: list[SourceShare]) -> str:
    counts = np.array([np.bincount(found, minlength=len(KINDS)) for found in kinds_by_source])
    there = np.flatnonzero(counts.sum(axis=0))
    if len(there) > 1:
        told = [
            f"{share.name}: {', '.join(f'{found[kind]} {KINDS[kind]}' for kind in there if found[kind])}"
            for share, found in zip(shares, counts, strict=True)
            if found.any()
        ]
        raise DataError(
            f"sources hold examples of different kinds ({'; '.join(told)}), and one recipe trains one kind. "
            "Give each kind a recipe of its own."
        )
    return KINDS[there[0]] if len(there) else ""


def _check_sizes(num_train: int, num_held_out: int, num_copies: int, config: MergeConfig) -> None:
    beside = f" ({num_copies} exact copies are left out)" if num_copies else ""
    if not num_train:
        raise DataError(
            f"merge.validation_fraction holds out every example{beside}, so none is left to train on. Lower it."
        )
    if config.validation_fraction and num_held_out < MIN_HELD_OUT:
        raise DataError(
            f"merge.validation_fraction {config.validation_fraction} holds out {num_held_out} of "
            f"{num_train + num_held_out} examples{beside}; {MIN_HELD_OUT} are the fewest that can be measured. "
            "Raise it, or give more rows."
        )


def _check_clean(found: ContaminationResult, validation: Dataset, config: MergeStepConfig) -> None:
    """Check that the gate will have enough items which no training example holds."""
    for name in config.judged:
        counts = found.counts[name]
        num_items, num_found = counts["items"], counts["exact"] + counts["ngram"]
        if name == HELD_OUT and config.max_items is not None and config.max_items < num_items:
            scored = set(sorted(validation["id"])[: config.max_items])
            num_items, num_found = len(scored), len(scored & _items(found, name))
        if num_items - num_found < MIN_HELD_OUT:
            raise DataError(_too_few_clean(name, num_items, num_found, counts))


def _items(found: ContaminationResult, name: str) -> set[str]:
    return {row["item"] for row in found.rows if row["benchmark"] == name}


def _too_few_clean(name: str, num_items: int, num_found: int, counts: dict[str, int]) -> str:
    what = "held-out examples" if name == HELD_OUT else f"questions of {name}"
    return (
        f"{num_found} of the {num_items} {what} that the gate would judge by were found in the training examples "
        f"({counts['exact']} whole, {counts['ngram']} by a run of 13 words), so {num_items - num_found} clean ones are "
        f"left, and {MIN_HELD_OUT} are the fewest that can be measured. Take them out of the training data, give "
        "more items, lower merge.boilerplate_rows where they only share wording, or set "
        "registry.gate.exclude_contaminated: false."
    )


def _by_source(
    shares: list[SourceShare], train: list[RowMask], held_out: list[RowMask], order: interleave.SourceOrder
) -> dict[str, dict[str, int]]:
    """Count what became of each data set's examples; `train` counts rows, so an example seen twice counts twice."""
    drawn = np.bincount(order, minlength=len(shares)).tolist()
    return {
        share.name: {
            "examples": len(trained),
            "exact_copies_dropped": len(trained) - _size(trained) - _size(held),
            "repeats": share.repeats,
            "train": rows,
            "train_never_drawn": max(_size(trained) - rows, 0),
            "validation": _size(held),
        }
        for share, trained, held, rows in zip(shares, train, held_out, drawn, strict=True)
    }
