"""One scored item, and the store that keeps each score once: by model, protocol and item."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tuneline import state


@dataclass(frozen=True)
class Item:
    """A question of a benchmark, with all that is needed to ask and to score it."""

    benchmark: str
    id: str
    prompt: str
    reference: str


@dataclass(frozen=True)
class Score:
    """What a model answered to an item, and its scores by metric."""

    benchmark: str
    item: str
    prompt: str
    reference: str
    output: str
    metrics: dict[str, float]


def score(item: Item, output: str, metrics: dict[str, float]) -> Score:
    """Join an item with its answer."""
    return Score(item.benchmark, item.id, item.prompt, item.reference, output, metrics)


def to_table(scores: Iterable[Score]) -> pa.Table:
    """Write scores as a table; metrics travel as JSON text, as benchmarks have different ones."""
    rows = [asdict(score) | {"metrics": json.dumps(score.metrics, sort_keys=True)} for score in scores]
    names = ("benchmark", "item", "prompt", "reference", "output", "metrics")
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.large_string()) for name in names]))


def from_table(table: pa.Table) -> list[Score]:
    """Read what `to_table` wrote."""
    return [Score(**{**row, "metrics": json.loads(row["metrics"])}) for row in table.to_pylist()]


def remembered(
    model_hash: str, protocol: str, items: Sequence[Item], answer: Callable[[list[Item]], list[Score]]
) -> list[Score]:
    """Return the score of each item, asking the model only for those that are not in the store.

    Args:
        model_hash: Content hash of the model.
        protocol: Id of how questions are put and scored.
        items: Items in order.
        answer: Scores the items that are missing; not called where none is.

    Returns:
        Scores in the order of the items, under the benchmark's present name: a renamed exam asks nothing again.
    """
    path = state.folder("scores") / model_hash[:32] / f"{protocol[:32]}.parquet"
    known = {score.item: score for score in _read(path)}
    missing = [item for item in items if item.id not in known]
    if missing:
        fresh = answer(missing)
        with state.lock(f"scores-{model_hash[:32]}"):
            known = {score.item: score for score in [*_read(path), *fresh]}
            _write(path, known.values())
    return [replace(known[item.id], benchmark=item.benchmark) for item in items]


def _read(path: Path) -> list[Score]:
    return from_table(pq.read_table(path)) if path.exists() else []


def _write(path: Path, scores: Iterable[Score]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    pq.write_table(to_table(scores), fresh)
    fresh.replace(path)
