"""Evaluation items, their scores, and the score cache: one entry per model, protocol and item."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tuneline import filesystem, state

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 20.0
"""Seconds between two writes. An evaluation that is killed repeats at most the items scored since the last write."""


@dataclass(frozen=True)
class Item:
    """One item of a benchmark: prompt and reference."""

    benchmark: str
    id: str
    """Id of the held-out example in the mixture, or content hash of a benchmark question."""

    prompt: str
    reference: str
    group: str = ""
    """Category and subject of a question, like `STEM/anatomy`."""


@dataclass(frozen=True)
class Score:
    """A model's answer to an item, and its scores per metric."""

    benchmark: str
    item: str
    prompt: str
    reference: str
    output: str
    metrics: dict[str, float] = field(default_factory=dict)
    group: str = ""
    seconds: float = 0.0
    """Wall-clock seconds: the item's share of its batch."""

    tokens: int = 0
    """Number of scored tokens, for log-likelihood scores."""

    contamination: str = ""
    """How the item occurs in a training example: `exact`, `ngram`, or an empty string."""


SCHEMA = pa.schema(
    [
        *((name, pa.large_string()) for name in ("benchmark", "item", "prompt", "reference", "output", "metrics")),
        ("group", pa.large_string()),
        ("seconds", pa.float64()),
        ("tokens", pa.int64()),
        ("contamination", pa.large_string()),
    ]
)
"""Schema of a score table. `metrics` is JSON text because benchmarks have different metrics."""


def score_answer(item: Item, output: str, metrics: dict[str, float], *, seconds: float = 0.0, tokens: int = 0) -> Score:
    """Build the score of an item from its answer."""
    return Score(
        item.benchmark,
        item.id,
        item.prompt,
        item.reference,
        output,
        metrics,
        item.group,
        seconds=seconds,
        tokens=tokens,
    )


def to_table(scores: Iterable[Score]) -> pa.Table:
    """Convert scores to an Arrow table."""
    rows = [asdict(score) | {"metrics": json.dumps(score.metrics, sort_keys=True)} for score in scores]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def from_table(table: pa.Table) -> list[Score]:
    """Convert a table from `to_table` to scores. Missing columns take their defaults."""
    return [Score(**{**row, "metrics": json.loads(row["metrics"])}) for row in table.to_pylist()]


def score_with_cache(
    model_hash: str, protocol: str, items: Sequence[Item], answer: Callable[[list[Item]], Iterable[Score]]
) -> list[Score]:
    """Return the score of each item. Only items without a cached score are computed.

    Args:
        model_hash: Content hash of the model.
        protocol: Id of how items are prompted and scored.
        items: Items in order.
        answer: Scores the missing items in any order; not called if none is missing. Scores that it yielded before an
            interruption are kept.

    Returns:
        Scores in the order of `items`, with the benchmark's current name: renaming a benchmark recomputes nothing.
    """
    path = state.folder("scores") / model_hash[:32] / f"{protocol[:32]}.parquet"
    cached = {score.item: score for score in _read(path)}
    missing = [item for item in items if item.id not in cached]
    if missing:
        for fresh in _flush_batches(answer(missing)):
            with state.lock(f"scores-{model_hash[:32]}"):
                cached = {score.item: score for score in [*_read(path), *fresh]}
                _write(path, cached.values())
    return [replace(cached[item.id], benchmark=item.benchmark, group=item.group) for item in items]


def _flush_batches(scores: Iterable[Score]) -> Iterable[list[Score]]:
    """Yield new scores every `FLUSH_SECONDS`, at the end, and before an exception propagates."""
    fresh: list[Score] = []
    last = time.monotonic()
    source = iter(scores)
    while True:
        try:
            fresh.append(next(source))
        except StopIteration:
            break
        except BaseException:
            if fresh:
                yield fresh
            raise
        if time.monotonic() - last >= FLUSH_SECONDS:
            yield fresh
            fresh, last = [], time.monotonic()
    if fresh:
        yield fresh


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file with page checksums."""
    pq.write_table(table, path, write_page_checksum=True)


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file and verify its page checksums.

    Raises:
        OSError: A page does not match its checksum.
        ArrowException: The file is not a Parquet file.
    """
    return pq.read_table(path, page_checksum_verification=True)


def _read(path: Path) -> list[Score]:
    """Read cached scores. A damaged file counts as empty, because every score can be computed again."""
    if not path.exists():
        return []
    try:
        return from_table(read_table(path))
    except (OSError, ValueError, pa.ArrowException) as error:
        logger.warning("%s is damaged (%s). It is a cache: its items are scored again.", path, error)
        return []


def _write(path: Path, scores: Iterable[Score]) -> None:
    with filesystem.atomic_path(path, sync=False) as unfinished:  # written often, and only a cache
        write_table(to_table(scores), unfinished)
