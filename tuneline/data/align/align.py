"""Alignment: converts records of any supported format to examples of one schema.

A row that cannot be used is refused with its file and line, or dropped and counted by reason, as `align.bad_rows` sets.
Alignment adds nothing to a row, except the system message that the recipe sets.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from tuneline.config.sections.sources import AlignConfig, AlignPolicy, Columns, LossOn, Tags
from tuneline.data import corpus, gc_pause, schema
from tuneline.data.align import columns, loss_switches, unknown_keys, validation
from tuneline.data.align.formats import formats, user_function
from tuneline.data.align.formats.base import Format, Record
from tuneline.data.align.unknown_keys import UnknownKeyCounter
from tuneline.data.corpus import Corpus
from tuneline.data.schema import Content
from tuneline.errors import DataError

logger = logging.getLogger(__name__)

MAX_DROPPED_SHOWN = 5
"""Dropped rows whose place and error are kept in the counts."""

NUM_DETECTION_ROWS = 200
"""Rows with a recognized format that detection reads."""

DETECTION_ORDER = ("standard", "preference", "kto", "sharegpt", "openai", "alpaca", "text")
"""Formats from the most to the least specific. A record has the first format that matches it."""


def align(records: Corpus, config: AlignConfig, places: dict[str, str] | None = None) -> Corpus:
    """Convert the records of one dataset to examples.

    Args:
        records: Rows of one dataset.
        config: Format and policy.
        places: If given, filled with the first place (file:line) of each example, by example id.

    Returns:
        Examples in the order of the records. The counts hold the format, the kinds of examples, the dropped rows by
        reason with their first places, and the keys that nothing reads.

    Raises:
        DataError: A row cannot be used and `bad_rows` is refuse, too many or all rows were dropped, or no format
            matches.
        RecipeError: A user-defined format cannot be imported.
    """
    source, rows = records.identity["source"], records.only()
    mapping = columns.column_mapping(config.columns)
    name = config.format
    if name == "auto":
        batches = (batch.column("record").to_pylist() for batch in corpus.iter_batches(rows))
        name = detect(f"sources.{source}", (parse_record(text) for batch in batches for text in batch), mapping)
    reader = _reader(name, config)
    tally = RecordCounts(places=places)
    with nullcontext() if ":" in name else gc_pause.gc_disabled(), corpus.RowWriter(schema.EXAMPLE) as writer:
        for batch in corpus.iter_batches(rows):
            examples = list(_examples(batch, source, reader, config, tally))
            if examples:
                writer.write(schema.to_arrow_columns(examples))
    check_num_usable(source, tally, config)
    counts = {**records.counts, "format": name, "format_found": config.format == "auto", **tally.counts()}
    return Corpus({"examples": writer.rows()}, {"source": source}, counts)


def warn_about_unknown_keys(examples: Corpus) -> None:
    """Log the keys of a dataset that nothing reads. A run calls this once; checks before the run do not."""
    if keys := UnknownKeyCounter.from_counts(examples.counts["unread_keys"]).describe():
        logger.warning("sources.%s: these keys are not read: %s", examples.identity["source"], " ".join(keys))


@dataclass(frozen=True)
class RowReader:
    """Reads the records of one dataset."""

    format: Format
    mapping: columns.ColumnMapping
    tags: Tags
    system: str | None
    loss_on: LossOn = "assistant"

    def read(self, record: Record) -> tuple[Content, schema.Kind]:
        """Convert a record and validate the result."""
        if schema.BAD_ROW_KEY in record:
            raise DataError(f"{record[schema.BAD_ROW_KEY]}.", str(record[schema.BAD_ROW_KEY]))
        record = self._rename_columns(record)
        validation.check_no_media(record)
        if self.format.keys:
            loss_switches.check_row(record)
        content = self.format.align(record, self.tags)
        kind = validation.validate(content)
        loss_switches.check_turns(content, kind, self.loss_on)
        if self.system and kind != "text" and content["messages"][0]["role"] != "system":
            content["messages"] = [schema.message("system", self.system), *content["messages"]]
        return content, kind

    def unknown_keys(self, record: Record) -> list[str]:
        """Return the keys of a record, and of its turns, that nothing reads."""
        if self.format.keys is None:
            return []
        record = self._rename_columns(record)
        return unknown_keys.find_unknown_keys(record, self.format.keys(record), self.tags)

    def _rename_columns(self, record: Record) -> Record:
        return columns.rename_columns(record, self.mapping) if self.mapping else record


def _reader(format: str, config: AlignConfig) -> RowReader:
    return RowReader(
        load_format(format, config.format_hash),
        columns.column_mapping(config.columns),
        config.tags,
        config.system,
        config.loss_on,
    )


@dataclass
class RecordCounts:
    """Counts of used and dropped records."""

    kinds: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_first: list[str] = field(default_factory=list)
    unknown_keys: UnknownKeyCounter = field(default_factory=UnknownKeyCounter)
    places: dict[str, str] | None = None

    def count_used(self, file: str, line: int, kind: str, example_id: str) -> None:
        """Count a row that becomes an example."""
        self.kinds[kind] += 1
        if self.places is not None:
            self.places.setdefault(example_id, f"{file}:{line}")

    def count_dropped(self, file: str, line: int, error: DataError) -> None:
        """Count a row that cannot be used."""
        self.dropped[error.reason or "refused by its format"] += 1
        if len(self.dropped_first) < MAX_DROPPED_SHOWN:
            self.dropped_first.append(f"{file}:{line}: {error}")

    def counts(self) -> dict[str, Any]:
        """Return the counts in the form that a corpus stores."""
        return {
            "examples": self.kinds.total(),
            "kinds": dict(self.kinds),
            "dropped": dict(self.dropped.most_common()),
            "dropped_first": self.dropped_first,
            "unread_keys": self.unknown_keys.to_counts(),
        }


def _examples(
    batch: pa.RecordBatch, source: str, reader: RowReader, policy: AlignPolicy, tally: RecordCounts
) -> Iterator[dict[str, Any]]:
    files, lines, texts = (batch.column(name).to_pylist() for name in ("file", "line", "record"))
    for file, line, text in zip(files, lines, texts, strict=True):
        try:
            record = parse_record(text)
            content, kind = reader.read(record)
            example = schema.example(source, content)
        except DataError as error:
            if policy.bad_rows == "refuse":
                raise bad_row_error(file, line, error) from error.__cause__
            tally.count_dropped(file, line, error)
            continue
        tally.count_used(file, line, kind, example["id"])
        if keys := reader.unknown_keys(record):
            tally.unknown_keys.add(f"{file}:{line}", keys)
        yield example


def parse_record(text: str) -> Record:
    """Parse a record. orjson rounds long integers, which matter in tool calls, and refuses lone surrogates."""
    if '"tool' in text or '"function' in text:
        return json.loads(text)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


def check_num_usable(source: str, tally: RecordCounts, policy: AlignPolicy) -> None:
    """Check that rows can be used, and that no more were dropped than the policy allows.

    Raises:
        DataError: None can be used, or too many were dropped.
    """
    num_bad, num_good = tally.dropped.total(), tally.kinds.total()
    reasons = "; ".join(f"{reason}: {count}" for reason, count in tally.dropped.most_common(10))
    first = f" First bad row: {tally.dropped_first[0]}" if tally.dropped_first else ""
    if not num_good:
        raise DataError(f"sources.{source}: none of {num_bad} rows can be used ({reasons}). Check the format.{first}")
    if num_bad > policy.max_bad_fraction * (num_bad + num_good):
        raise DataError(
            f"sources.{source}: {num_bad} of {num_bad + num_good} rows cannot be used, more than "
            f"align.max_bad_fraction {policy.max_bad_fraction} allows ({reasons}). Fix the rows, or raise "
            f"max_bad_fraction.{first}"
        )


def check_rows(rows: Iterable[tuple[str, int, Record]], config: AlignConfig) -> None:
    """Check sample rows before a run. If bad rows are dropped, one usable row is enough.

    Raises:
        DataError: A row cannot be used and `bad_rows` is refuse, none can be used, or no format matches.
        RecipeError: A user-defined format cannot be imported.
    """
    rows = list(rows)
    mapping = columns.column_mapping(config.columns)
    name = config.format
    if name == "auto":
        name = detect(rows[0][0] if rows else "auto", (record for _, _, record in rows), mapping)
    reader = _reader(name, config)
    last: DataError | None = None
    for file, line, record in rows:
        try:
            schema.content_id(reader.read(record)[0])
        except DataError as error:
            last = bad_row_error(file, line, error)
            if config.bad_rows == "refuse":
                raise last from error.__cause__
        else:
            if config.bad_rows == "drop":
                return
    if last:
        raise last


def bad_row_error(file: str, line: int, error: DataError) -> DataError:
    """Return the error of a row with its place."""
    return DataError(f"{file}:{line}: {error} Fix the row, or set align.bad_rows: drop.", error.reason)


def align_record(
    record: Record,
    format: str,
    system: str | None = None,
    *,
    tags: Tags | None = None,
    column_names: Columns | None = None,
) -> Content:
    """Convert one record to the content of an example.

    Args:
        record: One row of a dataset.
        format: Name in `formats`, or `module:function`.
        system: System message for records that have none.
        tags: The names that the dataset uses for roles and for the keys of a turn.
        column_names: The names that the dataset uses for columns.

    Raises:
        NotFoundError: `format` is unknown.
        DataError: The record does not match its format, or cannot be used for training.
    """
    mapping = columns.column_mapping(column_names or Columns())
    content, _ = RowReader(load_format(format), mapping, tags or Tags(), system).read(record)
    return content


def load_format(name: str, sha256: str = "") -> Format:
    """Return a format by its name, or a custom format `module:function`."""
    return user_function.load_format(name, sha256) if ":" in name else formats[name]


def detect_format(records: Iterable[Record]) -> str:
    """Detect the format from the first records that match any.

    Each record has the first format in `DETECTION_ORDER` that matches it. All records must agree, so that no record is
    read as a less specific format. Records without a match are skipped here and refused when they are read.

    Raises:
        DataError: No format matches, or several do.
    """
    keys: set[str] = set()
    matches: Counter[str] = Counter()
    for number, record in enumerate(records):
        if number < NUM_DETECTION_ROWS:
            keys |= record.keys()
        name = next((name for name in DETECTION_ORDER if formats[name].matches(record)), None)
        if name:
            matches[name] += 1
            if matches.total() == NUM_DETECTION_ROWS:
                break
    if len(matches) == 1:
        return next(iter(matches))
    raise _detection_error(matches, sorted(keys))


def _detection_error(matches: Counter[str], keys: list[str]) -> DataError:
    seen = f"The rows have the columns {keys[:20]}."
    if matches:
        several = " and ".join(f"{name} ({count} rows)" for name, count in matches.most_common())
        return DataError(f"the rows match several formats: {several}. {seen} Set format.", "several formats")
    return DataError(
        f"the rows match no known format. {seen} Map the columns, for example `{columns.suggest_columns(keys)}`, or "
        f"set format to one of {', '.join(DETECTION_ORDER)}, or to module:function for a custom format.",
        "no format",
    )


def detect(place: str, records: Iterable[Record], mapping: columns.ColumnMapping) -> str:
    """Detect the format of records after their columns are renamed; errors begin with `place`."""
    errors: list[DataError] = []
    try:
        return detect_format(_rename_all(records, mapping, errors))
    except DataError as error:
        error = errors[0] if error.reason == "no format" and errors else error
        raise DataError(f"{place}: {error}", error.reason) from None


def _rename_all(records: Iterable[Record], mapping: columns.ColumnMapping, errors: list[DataError]) -> Iterator[Record]:
    """Yield records with renamed columns; the first error goes to `errors`."""
    for record in records:
        if schema.BAD_ROW_KEY in record:
            continue
        try:
            yield columns.rename_columns(record, mapping) if mapping else record
        except DataError as error:
            errors[:] = errors or [error]
