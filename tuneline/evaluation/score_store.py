"""One scored item, and the store that keeps each score once: by model, protocol and item."""

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
"""Scores are written at least so often; an evaluation that is killed asks again for what came since."""


@dataclass(frozen=True)
class Item:
    """A question of a benchmark, with all that is needed to ask and to score it."""

    benchmark: str
    id: str
    """Of a held-out example, its id in the mixture; of an exam's question, the hash of its content."""

    prompt: str
    reference: str
    group: str = ""
    """Subject of an exam's question, behind its category: `STEM/anatomy`."""


@dataclass(frozen=True)
class Score:
    """What a model answered to an item, and its scores by metric."""

    benchmark: str
    item: str
    prompt: str
    reference: str
    output: str
    metrics: dict[str, float] = field(default_factory=dict)
    group: str = ""
    seconds: float = 0.0
    """Wall time of answering: the item's share of its batch."""

    tokens: int = 0
    """Tokens that were scored, where a likelihood is the score."""

    contamination: str = ""
    """How a training example holds the item: `exact`, `ngram`, or not at all."""


SCHEMA = pa.schema(
    [
        *((name, pa.large_string()) for name in ("benchmark", "item", "prompt", "reference", "output", "metrics")),
        ("group", pa.large_string()),
        ("seconds", pa.float64()),
        ("tokens", pa.int64()),
        ("contamination", pa.large_string()),
    ]
)
"""Columns of a table of scores; `metrics` is JSON text, as benchmarks have different ones."""


def score_answer(item: Item, output: str, metrics: dict[str, float], *, seconds: float = 0.0, tokens: int = 0) -> Score:
    """Join an item with its answer."""
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
    """Write scores as a table."""
    rows = [asdict(score) | {"metrics": json.dumps(score.metrics, sort_keys=True)} for score in scores]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def from_table(table: pa.Table) -> list[Score]:
    """Read what `to_table` wrote; columns that were not written then have their defaults."""
    return [Score(**{**row, "metrics": json.loads(row["metrics"])}) for row in table.to_pylist()]


def score_with_cache(
    model_hash: str, protocol: str, items: Sequence[Item], answer: Callable[[list[Item]], Iterable[Score]]
) -> list[Score]:
    """Return the score of each item, asking the model only for those that are not in the store.

    Args:
        model_hash: Content hash of the model.
        protocol: Id of how questions are put and scored.
        items: Items in order.
        answer: Scores the items that are missing, in any order; not called where none is. What it has yielded is kept
            though it be interrupted.

    Returns:
        Scores in the order of the items, under the benchmark's present name: a renamed exam asks nothing again.
    """
    path = state.folder("scores") / model_hash[:32] / f"{protocol[:32]}.parquet"
    known = {score.item: score for score in _read(path)}
    missing = [item for item in items if item.id not in known]
    if missing:
        for fresh in _flush_batches(answer(missing)):
            with state.lock(f"scores-{model_hash[:32]}"):
                known = {score.item: score for score in [*_read(path), *fresh]}
                _write(path, known.values())
    return [replace(known[item.id], benchmark=item.benchmark, group=item.group) for item in items]


def _flush_batches(scores: Iterable[Score]) -> Iterable[list[Score]]:
    """Yield what has come since the last time, every so often, at the end, and before an interruption goes on."""
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
    """Write a table with a checksum for each of its pages."""
    pq.write_table(table, path, write_page_checksum=True)


def read_table(path: Path) -> pa.Table:
    """Read a table, and compare its pages with their checksums.

    Raises:
        OSError: Its bytes are not those that were written.
        ArrowException: It is not a table.
    """
    return pq.read_table(path, page_checksum_verification=True)


def _read(path: Path) -> list[Score]:
    """Read the scores that are known; a damaged file counts as none, as all can be asked again."""
    if not path.exists():
        return []
    try:
        return from_table(read_table(path))
    except (OSError, ValueError, pa.ArrowException) as error:
        logger.warning("%s is damaged (%s). It is only a cache: its items are asked again.", path, error)
        return []


def _write(path: Path, scores: Iterable[Score]) -> None:
    with filesystem.atomic_path(path, sync=False) as unfinished:  # written often, and only a cache
        write_table(to_table(scores), unfinished)
