"""A look before a run: the first rows of each data set, made into training rows by the functions that a run uses.

Each data set is looked at by itself; what needs all rows (copies, the held-out part, the mixture, contamination) is
left out. Files are read as far as needed and not hashed, so their size makes no difference.
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
from tuneline.data.tokenization.items import resolve_kind
from tuneline.errors import NotFoundError, TunelineError
from tuneline.identity import FileEntry, Located

NUM_SAMPLE_ROWS = 2000
"""Rows of each data set that are looked at."""


@dataclass(frozen=True)
class PreviewResult:
    """What was seen of each data set, and the error that the lengths would be in a run."""

    sections: list[DatasetPreview]
    problem: TunelineError | None = None


def preview_sources(recipe: Recipe, tokenizer: Any, *, num_shown: int = 5, only: str | None = None) -> PreviewResult:
    """Make training rows of the first rows of each data set.

    Examples that are too long, or too many of them, are a problem told at the end, so that their lengths can be seen.

    Args:
        recipe: What a run would be given.
        tokenizer: The base model's, with the recipe's chat template.
        num_shown: Sequences to keep of each data set.
        only: Name of the one data set to look at.

    Raises:
        NotFoundError: The recipe has no such data set.
        TunelineError: As the steps of a run.
    """
    known = recipe.unique_sources()
    chosen = [source for source in known if only in (None, source.name)]
    if not chosen:
        raise NotFoundError.among("source", str(only), [source.name for source in known])
    trial = DryRun(tokenizer, recipe.for_tokenize(), num_shown)
    sections = [_section(source, recipe, trial, tokenizer) for source in chosen]
    return PreviewResult(sections, trial.problem())


def _section(source: SourceConfig, recipe: Recipe, trial: DryRun, tokenizer: Any) -> DatasetPreview:
    records, are_all = _first_records(_located(source), source)
    examples = align.align(records, recipe.for_align(source), trial.places)
    counts = examples.counts
    made = trial.make(examples.only(), resolve_kind(counts["kinds"], trial.config, f"sources.{source.name}"))
    seen = {
        "place": source.hub or min(str(source.path), os.path.relpath(str(source.path)), key=len),
        "format": counts["format"],
        "format_found": counts["format_found"],
        "rows": counts["rows"],
        "all_rows": are_all,
        "kinds": counts["kinds"],
        "bad_rows": counts["dropped"],
        "first_bad_rows": counts["dropped_first"],
        "unread_keys": counts["unread_keys"],
        **made.counts,
    }
    return DatasetPreview(source.name, made.shown, seen, list(_facts(seen)))


def _located(source: SourceConfig) -> Located:
    """Find the files of a data set without reading them; those of the hub are copied first."""
    if source.path is None:
        return ingest.locate_sources([source]).only()
    found = find_source_files(source.name, source.path)
    names = [path.relative_to(found.folder).as_posix() for path in found.paths]
    entries = [FileEntry(name=name, size=0, sha256="") for name in names]
    return Located(name=source.name, location=str(found.folder), source=source.path.name, files=entries)


def _first_records(found: Located, source: SourceConfig) -> tuple[Corpus, bool]:
    """Return the first records, and whether these are all that the recipe takes."""
    wanted = min(source.max_rows or NUM_SAMPLE_ROWS, NUM_SAMPLE_ROWS)
    read = list(_records(found, wanted + 1))
    taken = read[:wanted]
    if not taken:
        raise ingest.no_rows_error(found)
    files, lines, texts = (list(column) for column in zip(*taken, strict=True))
    with corpus.RowWriter(schema.RECORD) as writer:
        writer.write({"file": files, "line": lines, "record": pa.array(texts, pa.large_string())})
    are_all = len(read) == len(taken) or (wanted == source.max_rows and source.sample == "first")
    return Corpus({"records": writer.rows()}, {"source": found.name}, {"rows": len(taken)}), are_all


def _records(found: Located, limit: int) -> Iterator[tuple[str, int, bytes]]:
    for path in found.paths():
        name = path.relative_to(found.location).as_posix()
        for chunk in readers.read_chunks(path):
            lines = chunk.lines[:limit]
            limit -= len(lines)
            yield from ((name, *row) for row in zip(lines, chunk.read(range(len(lines))), strict=True))
            if not limit:
                return


def _facts(seen: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what was counted as a person reads it."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in seen["kinds"].items())
    lengths = ", ".join(f"{name} {length:,}" for name, length in seen["tokens_a_sequence"].items())
    bad = "; ".join(f"{reason}: {count:,}" for reason, count in seen["bad_rows"].items())
    yield "place", seen["place"]
    yield "format", f"{seen['format']}{', found by the rows' if seen['format_found'] else ''}; {kinds}"
    yield "read", f"{'all' if seen['all_rows'] else 'the first'} {seen['rows']:,} rows"
    yield "bad rows", "\n".join([f"dropped: {bad}", *seen["first_bad_rows"]]) if bad else "none"
    unread = [f"{key}: {found['count']:,}, first {found['first']}" for key, found in seen["unread_keys"].items()]
    yield "unread keys", "\n".join(unread) or "none"
    yield "lengths", f"{lengths} tokens"
    yield "too long", _too_long(seen)
    yield "trained", f"{seen['trained_tokens']:,} of {seen['tokens']:,} tokens, {seen['coverage']:.1%}"
    if seen["empty_thoughts"]:
        yield "empty thoughts", _empty_thoughts(seen)
    if "fill" in seen:
        yield "rows made", f"{seen['packed_rows']:,} of max_length {seen['max_length']:,}, {seen['fill']:.1%} full"
    yield "rendering", f"{seen['rendering']}; {seen['rendered_by_template']:,} rendered one by one"


def _empty_thoughts(seen: dict[str, Any]) -> str:
    return (
        f"the chat template writes an empty thinking block into {seen['empty_thoughts']:,} answers, "
        f"{seen['empty_thought_tokens']:,} tokens that the rows do not have and that carry no loss; a block that a row "
        "writes is trained"
    )


def _too_long(seen: dict[str, Any]) -> str:
    if not seen["too_long"]:
        return "none"
    done = {"cut": seen["cut"], "dropped": seen["dropped_for_length"], "more by the split": seen["made_by_split"]}
    became = ", ".join(f"{count:,} {what}" for what, count in done.items() if count)
    return (
        f"{seen['too_long']:,} of {seen['sequences']:,} sequences have more than max_length {seen['max_length']:,}; "
        f"overlong: {seen['overlong']}{f' ({became})' if became else ''}"
    )
