"""Preview of a recipe's data: the first rows of each dataset, turned into training rows by the functions of a run.

Datasets are previewed separately; steps that need all rows (deduplication, the held-out split, the mixture,
contamination) are skipped. Files are read only as far as needed and not hashed, so their size does not matter.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tuneline.config.existence import find_source_files
from tuneline.config.recipe import Recipe
from tuneline.config.sections.sources import SourceConfig
from tuneline.data import corpus, schema
from tuneline.data.align import align
from tuneline.data.corpus import Corpus
from tuneline.data.ingest import ingest, readers
from tuneline.data.preview.dry_run import DryRun
from tuneline.data.tokenization.html_preview import DatasetPreview
from tuneline.data.tokenization.tokenized_examples import resolve_kind
from tuneline.errors import NotFoundError, TunelineError
from tuneline.identity import FileEntry, Located

NUM_SAMPLE_ROWS = 2000
"""Number of rows that are read of each dataset."""


@dataclass(frozen=True)
class PreviewResult:
    """The preview of each dataset, and the error that a run would raise about lengths, if any."""

    sections: list[DatasetPreview]
    problem: TunelineError | None = None


def preview_sources(recipe: Recipe, tokenizer: Any, *, num_shown: int = 5, only: str | None = None) -> PreviewResult:
    """Make training rows of the first rows of each dataset.

    Errors about lengths are returned instead of raised, so that the lengths can be displayed.

    Args:
        recipe: The recipe of the run.
        tokenizer: The base model's tokenizer with the recipe's chat template.
        num_shown: Number of sequences to display of each dataset.
        only: Name of the only dataset to preview.

    Raises:
        NotFoundError: The recipe has no dataset of this name.
        TunelineError: As the steps of a run.
    """
    sources = recipe.unique_sources()
    selected = [source for source in sources if only in (None, source.name)]
    if not selected:
        raise NotFoundError.among("source", str(only), [source.name for source in sources])
    dry_run = DryRun(tokenizer, recipe.for_tokenize(), num_shown)
    sections = [_section(source, recipe, dry_run) for source in selected]
    return PreviewResult(sections, dry_run.length_error())


def _section(source: SourceConfig, recipe: Recipe, dry_run: DryRun) -> DatasetPreview:
    records, are_all = _first_records(_locate_source(source), source)
    examples = align.align(records, recipe.for_align(source), dry_run.locations)
    counts = examples.counts
    result = dry_run.run(examples.only(), resolve_kind(counts["kinds"], dry_run.config, f"sources.{source.name}"))
    statistics = {
        "place": source.hub or min(str(source.path), os.path.relpath(str(source.path)), key=len),
        "format": counts["format"],
        "format_found": counts["format_found"],
        "rows": counts["rows"],
        "all_rows": are_all,
        "kinds": counts["kinds"],
        "bad_rows": counts["dropped"],
        "first_bad_rows": counts["dropped_first"],
        "unread_keys": counts["unread_keys"],
        **result.counts,
    }
    return DatasetPreview(source.name, result.shown, statistics, list(_facts(statistics)))


def _locate_source(source: SourceConfig) -> Located:
    """Locate the files of a dataset without reading them; files from the Hub are downloaded first."""
    if source.path is None:
        return ingest.locate_sources([source]).only()
    data_files = find_source_files(source.name, source.path)
    names = [path.relative_to(data_files.folder).as_posix() for path in data_files.paths]
    entries = [FileEntry(name=name, size=0, sha256="") for name in names]
    return Located(name=source.name, location=str(data_files.folder), source=source.path.name, files=entries)


def _first_records(located: Located, source: SourceConfig) -> tuple[Corpus, bool]:
    """Return the first records, and whether these are all records that the recipe uses."""
    num_requested = min(source.max_rows or NUM_SAMPLE_ROWS, NUM_SAMPLE_ROWS)
    available = list(_records(located, num_requested + 1))
    records = available[:num_requested]
    if not records:
        raise ingest.no_rows_error(located)
    files, lines, texts = (list(column) for column in zip(*records, strict=True))
    with corpus.RowWriter(schema.RECORD) as writer:
        writer.write({"file": files, "line": lines, "record": pa.array(texts, pa.large_string())})
    are_all = len(available) == len(records) or (num_requested == source.max_rows and source.sample == "first")
    return Corpus({"records": writer.rows()}, {"source": located.name}, {"rows": len(records)}), are_all


def _records(located: Located, limit: int) -> Iterator[tuple[str, int, bytes]]:
    for path in located.paths():
        name = path.relative_to(located.location).as_posix()
        for chunk in readers.read_chunks(path):
            lines = chunk.lines[:limit]
            limit -= len(lines)
            yield from ((name, *row) for row in zip(lines, chunk.read(range(len(lines))), strict=True))
            if not limit:
                return


def _facts(stats: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Format the statistics as pairs of a name and a readable value."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in stats["kinds"].items())
    lengths = ", ".join(f"{name} {length:,}" for name, length in stats["tokens_a_sequence"].items())
    bad = "; ".join(f"{reason}: {count:,}" for reason, count in stats["bad_rows"].items())
    yield "place", stats["place"]
    yield "format", f"{stats['format']}{', detected automatically' if stats['format_found'] else ''}; {kinds}"
    yield "read", f"{'all' if stats['all_rows'] else 'the first'} {stats['rows']:,} rows"
    yield "bad rows", "\n".join([f"dropped: {bad}", *stats["first_bad_rows"]]) if bad else "none"
    unread = [f"{key}: {usage['count']:,}, first {usage['first']}" for key, usage in stats["unread_keys"].items()]
    yield "unread keys", "\n".join(unread) or "none"
    yield "lengths", f"{lengths} tokens"
    yield "too long", _describe_overlong(stats)
    yield "trained", f"{stats['trained_tokens']:,} of {stats['tokens']:,} tokens, {stats['coverage']:.1%}"
    if stats["empty_thoughts"]:
        yield "empty thoughts", _empty_thoughts(stats)
    if "fill" in stats:
        yield "packed rows", f"{stats['packed_rows']:,} of max_length {stats['max_length']:,}, {stats['fill']:.1%} full"
    yield "rendering", f"{stats['rendering']}; {stats['rendered_by_template']:,} rendered individually"


def _empty_thoughts(stats: dict[str, Any]) -> str:
    return (
        f"the chat template inserts an empty thinking block into {stats['empty_thoughts']:,} answers, "
        f"{stats['empty_thought_tokens']:,} tokens that are not in the rows and have no loss; a block that a row "
        "contains is trained"
    )


def _describe_overlong(stats: dict[str, Any]) -> str:
    if not stats["too_long"]:
        return "none"
    actions = {
        "truncated": stats["cut"],
        "dropped": stats["dropped_for_length"],
        "added by splitting": stats["made_by_split"],
    }
    outcome = ", ".join(f"{count:,} {action}" for action, count in actions.items() if count)
    return (
        f"{stats['too_long']:,} of {stats['sequences']:,} sequences have more than max_length {stats['max_length']:,}; "
        f"overlong: {stats['overlong']}{f' ({outcome})' if outcome else ''}"
    )
