"""A look before a run: the first rows of each data set, made into training rows by the functions that a run uses.

Each data set is looked at by itself; what needs all rows (copies, the held-out part, the mixture, contamination) is
left out. Files are read as far as needed and not hashed, so their size makes no difference.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from tuneline.config.data import TokenizeStepConfig
from tuneline.config.places import files_of
from tuneline.config.recipe import SFTRecipe
from tuneline.config.sources import SourceConfig
from tuneline.data import align, corpus, readers, render, rows, schema, sequences, sources
from tuneline.data.corpus import Corpus
from tuneline.data.preview import Section
from tuneline.data.sequences import CompiledDiffersError, Sequencer
from tuneline.data.tokenize import KINDS
from tuneline.data.tokens import Tokens
from tuneline.errors import DataError, NotFoundError, TunelineError
from tuneline.identity import FileEntry, Located

FIRST_ROWS = 2000
"""Rows of each data set that are looked at."""

ANY_LENGTH = 2**31 - 1
BINS = 10

MARK = "function_of_a_look"
CALLING = [
    schema.message("user", "question"),
    schema.message("assistant", "", f'[{{"type":"function","function":{{"name":"{MARK}","arguments":{{}}}}}}]'),
    schema.message("tool", "result"),
    schema.message("assistant", "answer"),
]
TOOLS = (
    f'[{{"type":"function","function":{{"name":"{MARK}","description":"d","parameters":{{"type":"object",'
    '"properties":{}}}}]'
)

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Look:
    """What was seen of each data set, and the error that the same rows would be in a run."""

    sections: list[Section]
    problem: TunelineError | None = None


def look(recipe: SFTRecipe, tokenizer: Any, *, num_shown: int = 5, only: str | None = None) -> Look:
    """Make training rows of the first rows of each data set.

    Examples that are too long, or too many of them, are no error here but one to be told at the end, so that their
    lengths can be seen.

    Args:
        recipe: What a run would be given.
        tokenizer: The base model's, with the recipe's chat template.
        num_shown: Sequences to keep of each data set.
        only: Name of the one data set to look at.

    Raises:
        NotFoundError: The recipe has no such data set.
        TunelineError: As the steps of a run.
    """
    chosen = [source for source in recipe.sources_once() if only in (None, source.name)]
    if not chosen:
        raise NotFoundError.among("source", str(only), [source.name for source in recipe.sources_once()])
    maker = _Maker(tokenizer, recipe.for_tokenize(), num_shown)
    sections = [_section(source, recipe, maker) for source in chosen]
    return Look(sections, maker.problem())


def _section(source: SourceConfig, recipe: SFTRecipe, maker: "_Maker") -> Section:
    found = _located(source)
    records, is_whole = _first_records(found, source)
    examples = align.align(records, recipe.for_align(source))
    counts = examples.counts
    _check_kind(source.name, counts["kinds"], maker.config.stage)
    made = maker.make(examples.only())
    seen = {
        "place": source.hub or min(str(source.path), os.path.relpath(str(source.path)), key=len),
        "format": counts["format"],
        "format_found": counts["format_found"],
        "rows": counts["rows"],
        "all_rows": is_whole,
        "kinds": counts["kinds"],
        "bad_rows": counts["dropped"],
        "first_bad_rows": counts["dropped_first"],
        "not_written": maker.not_written(examples.only()),
        **made.counts,
    }
    return Section(source.name, made.shown, seen, list(_facts(seen)))


def _located(source: SourceConfig) -> Located:
    """Find files without reading them."""
    if source.path is None:
        return sources.locate([source]).only()
    found = files_of(source.name, source.path)
    names = [path.relative_to(found.folder).as_posix() for path in found.paths]
    entries = [FileEntry(name=name, size=0, sha256="") for name in names]
    return Located(name=source.name, location=str(found.folder), source=source.path.name, files=entries)


def _first_records(found: Located, source: SourceConfig) -> tuple[Corpus, bool]:
    """Return the first records, and whether these are all that the recipe takes."""
    wanted = min(source.max_rows or FIRST_ROWS, FIRST_ROWS)
    read = list(islice(_records(found), wanted + 1))
    taken = read[:wanted]
    if not taken:
        raise DataError(f"sources.{found.name}: {found.paths()[0]} holds no rows. Give a file with at least one.")
    files, lines, texts = (list(column) for column in zip(*taken, strict=True))
    with corpus.Writer(schema.RECORD) as writer:
        writer.write({"file": files, "line": lines, "record": pa.array(texts, pa.large_string())})
    is_all = len(read) == len(taken) or (wanted == source.max_rows and source.sample == "first")
    return Corpus({"records": writer.rows()}, {"source": found.name}, {"rows": len(taken)}), is_all


def _records(found: Located) -> Iterator[tuple[str, int, bytes]]:
    for path in found.paths():
        name = path.relative_to(found.location).as_posix()
        for chunk in readers.chunks(path):
            texts = chunk.read(range(len(chunk.lines)))
            yield from ((name, line, text) for line, text in zip(chunk.lines, texts, strict=True))


def _check_kind(name: str, kinds: dict[str, int], stage: str) -> None:
    other = next((kind for kind in kinds if kind not in KINDS[stage]), None)
    if other:
        raise DataError(
            f"sources.{name} holds examples of kind {other}; stage {stage} trains on {' or '.join(KINDS[stage])}. Set "
            "format, or take other data."
        )


@dataclass(frozen=True)
class _Made:
    """Sequences of one data set: those to show, all in a file, what was done to them, and what is told of that."""

    shown: list[Tokens] = field(default_factory=list)
    waiting: rows.Waiting = field(default_factory=rows.Waiting)
    done: dict[str, int] = field(default_factory=dict)
    rendering: str = ""
    counts: dict[str, Any] = field(default_factory=dict)


class _Maker:
    """Makes sequences: first at any length, so that lengths are those of the data, then cut where some are too long."""

    def __init__(self, tokenizer: Any, config: TokenizeStepConfig, num_shown: int) -> None:
        self.config = config
        self._tokenizer = tokenizer
        self._num_shown = num_shown
        self._whole = Sequencer(tokenizer, config.model_copy(update={"max_length": ANY_LENGTH}))
        self._cutting: Sequencer | None = None
        self._totals: Counter[str] = Counter()
        self._refused: DataError | None = None

    def make(self, examples: Dataset) -> _Made:
        """Make the sequences of one data set."""
        whole = self._make(examples, self._whole)
        lengths = np.array(whole.waiting.lengths)
        made = self._cut(examples) if lengths.size and lengths.max() > self.config.max_length else whole
        counted = made or whole
        self._totals.update(counted.done)
        laid_out = _laid_out(made.waiting, self.config) if made else {}
        return replace(counted, counts=self._counts(counted, lengths) | laid_out)

    def _cut(self, examples: Dataset) -> _Made | None:
        self._cutting = self._cutting or Sequencer(self._tokenizer, self.config)
        try:
            return self._make(examples, self._cutting)
        except DataError as error:  # all else was refused when the sequences were whole
            self._refused = self._refused or error
        return None

    def not_written(self, examples: Dataset) -> list[str]:
        """Name what the rows have and the chat template does not write."""
        has_calls = has_tools = False
        for batch in corpus.batches(examples):
            has_calls = has_calls or batch.column("messages").values.field("tool_calls").null_count < _num_turns(batch)
            has_tools = has_tools or pc.any(pc.not_equal(batch.column("tools"), "")).as_py()
        lost = []
        if has_calls and MARK not in render.apply(CALLING, "", self._tokenizer):
            lost.append("calls of functions")
        if has_tools and MARK not in render.apply(CALLING[:1], TOOLS, self._tokenizer):
            lost.append("functions' schemas")
        return lost

    def problem(self) -> DataError | None:
        """Return what a run would refuse about lengths, by the rows seen."""
        if self._refused or self._cutting is None:
            return self._refused
        self._cutting.start()
        self._cutting.counts.update(self._totals)
        try:
            self._cutting.check_cuts()
        except DataError as error:
            return DataError(f"Of the rows seen: {error}")
        return None

    def _make(self, examples: Dataset, sequencer: Sequencer) -> _Made:
        try:
            return self._make_once(examples, sequencer)
        except CompiledDiffersError:
            sequencer.distrust()
            return self._make_once(examples, sequencer)

    def _make_once(self, examples: Dataset, sequencer: Sequencer) -> _Made:
        made = _Made()
        sequencer.start()
        for batch in corpus.batches(examples):
            for _, tokens in sequencer.sequences(schema.from_batch(batch, sequences.COLUMNS)):
                made.waiting.add(tokens)
                if len(made.shown) < self._num_shown:
                    made.shown.append(tokens)
        return replace(made, done=dict(sequencer.counts), rendering=sequencer.rendering)

    def _counts(self, made: _Made, lengths: Lengths) -> dict[str, Any]:
        tokens, trained = sum(made.waiting.lengths), made.waiting.num_trained
        return {
            "tokens_a_sequence": _quantiles(lengths),
            "max_length": self.config.max_length,
            "too_long": int((lengths > self.config.max_length).sum()),
            "overlong": self.config.overlong,
            "cut": made.done["cut"],
            "dropped_for_length": made.done["dropped"],
            "made_by_split": made.done["made_by_split"],
            "sequences": len(made.waiting.lengths),
            "tokens": tokens,
            "trained_tokens": trained,
            "coverage": round(trained / max(tokens, 1), 4),
            "rendering": made.rendering,
            "rendered_by_template": made.done["rendered_by_template"],
            "lengths": _histogram(lengths, self.config.max_length),
        }


def _num_turns(batch: pa.RecordBatch) -> int:
    return len(batch.column("messages").values)


def _laid_out(waiting: rows.Waiting, config: TokenizeStepConfig) -> dict[str, Any]:
    laid_out = waiting.rows(config.max_length, config.packing)
    return {"packed_rows": laid_out.num_rows, "fill": rows.fill(laid_out, sum(waiting.lengths), config.max_length)}


def _quantiles(lengths: Lengths) -> dict[str, int]:
    if not lengths.size:
        return {}
    found = np.quantile(lengths, (0, 0.5, 0.95, 1), method="nearest").astype(int).tolist()
    return dict(zip(("shortest", "median", "p95", "longest"), found, strict=True))


def _histogram(lengths: Lengths, max_length: int) -> dict[str, list[int]]:
    """Count by length up to `max_length`, and all that is longer in a last bin; an edge belongs to what follows it."""
    fitting = lengths[lengths <= max_length]
    edges, counts = [max_length + 1], list[int]()
    if fitting.size:
        low, high = int(fitting.min()), int(fitting.max()) + 1
        edges = np.unique(np.linspace(low, high, BINS + 1).round().astype(int)).tolist()
        counts = np.histogram(fitting, edges)[0].tolist()
    if fitting.size < lengths.size:
        edges = [*edges[:-1], max_length + 1, int(lengths.max()) + 1]
        counts.append(int(lengths.size - fitting.size))
    return {"edges": edges, "counts": counts}


def _facts(seen: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what was counted as a person reads it."""
    lengths = ", ".join(f"{name} {length:,}" for name, length in seen["tokens_a_sequence"].items())
    bad = "; ".join(f"{reason}: {count:,}" for reason, count in seen["bad_rows"].items())
    found = ", found by the rows" if seen["format_found"] else ""
    yield "place", seen["place"]
    yield "format", f"{seen['format']}{found}; {', '.join(f'{n:,} {kind}' for kind, n in seen['kinds'].items())}"
    yield "read", f"{'all' if seen['all_rows'] else 'the first'} {seen['rows']:,} rows"
    yield "bad rows", "\n".join([f"dropped: {bad}", *seen["first_bad_rows"]]) if bad else "none"
    if seen["not_written"]:
        yield "not written", f"the chat template leaves out {' and '.join(seen['not_written'])}. Set template to one that does not."
    yield "lengths", f"{lengths} tokens"
    yield "too long", _too_long(seen)
    yield "trained", f"{seen['trained_tokens']:,} of {seen['tokens']:,} tokens, {seen['coverage']:.1%}"
    if "fill" in seen:
        yield "rows made", f"{seen['packed_rows']:,} of max_length {seen['max_length']:,}, {seen['fill']:.1%} full"
    yield "rendering", f"{seen['rendering']}; {seen['rendered_by_template']:,} rendered one by one"


def _too_long(seen: dict[str, Any]) -> str:
    if not seen["too_long"]:
        return "none"
    done = {"cut": seen["cut"], "dropped": seen["dropped_for_length"], "more made by the split": seen["made_by_split"]}
    became = ", ".join(f"{count:,} {what}" for what, count in done.items() if count)
    return f"{seen['too_long']:,} of {seen['seen']:,} sequences; overlong: {seen['overlong']}{f' ({became})' if became else ''}"
