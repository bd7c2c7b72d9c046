"""Alignment: records of any known format -> examples of the one schema.

A row that cannot be used is refused with its place, or dropped and counted by reason, as the recipe says. Nothing is
added to a row that its data set does not say, but for the system message that the recipe asks for.
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
NUM_DETECTION_ROWS = 200
DETECTION_ORDER = ("standard", "preference", "kto", "sharegpt", "openai", "alpaca", "text")
"""Formats from the most specific on: a record is of the first that it looks like."""


def align(records: Corpus, config: AlignConfig, places: dict[str, str] | None = None) -> Corpus:
    """Give every record the one shape.

    Args:
        records: Rows of one data set.
        config: Format and policy.
        places: Filled with the first place (file:line) of each example, by its id.

    Returns:
        Examples in the order of the records; counts hold the format, the kinds of examples, what was dropped, by
        reason, with the first places, and the keys that nothing reads.

    Raises:
        DataError: A row cannot be used and `bad_rows` says refuse, too many or all were dropped, or no format fits.
        RecipeError: A format of the user's own cannot be imported.
    """
    source, rows = records.identity["source"], records.only()
    names = columns.column_mapping(config.columns)
    name = config.format
    if name == "auto":
        batches = (batch.column("record").to_pylist() for batch in corpus.iter_batches(rows))
        name = _found(f"sources.{source}", (_parse(text) for batch in batches for text in batch), names)
    reader = _reader(name, config)
    tally = _Tally(places=places)
    with nullcontext() if ":" in name else gc_pause.gc_disabled(), corpus.RowWriter(schema.EXAMPLE) as writer:
        for batch in corpus.iter_batches(rows):
            examples = list(_examples(batch, source, reader, config, tally))
            if examples:
                writer.write(schema.to_arrow_columns(examples))
    _is_enough(source, tally, config)
    counts = {**records.counts, "format": name, "format_found": config.format == "auto", **tally.counts()}
    return Corpus({"examples": writer.rows()}, {"source": source}, counts)


def warn_about_unknown_keys(examples: Corpus) -> None:
    """Log the keys of a data set that nothing reads; a run does it once, and its checks before do not."""
    if told := UnknownKeyCounter.of(examples.counts["unread_keys"]).lines():
        logger.warning("sources.%s: nothing reads the keys %s", examples.identity["source"], " ".join(told))


@dataclass(frozen=True)
class _Reader:
    """How the records of one data set are read."""

    format: Format
    names: columns.ColumnMapping
    tags: Tags
    system: str | None
    loss_on: LossOn = "assistant"

    def read(self, record: Record) -> tuple[Content, schema.Kind]:
        """Read a record and check that it can be used."""
        if schema.BAD_ROW_KEY in record:
            raise DataError(f"{record[schema.BAD_ROW_KEY]}.", str(record[schema.BAD_ROW_KEY]))
        record = self._renamed(record)
        validation.check_no_media(record)
        if self.format.keys:
            loss_switches.check_row(record)
        said = self.format.align(record, self.tags)
        kind = validation.validate(said)
        loss_switches.check_turns(said, kind, self.loss_on)
        if self.system and kind != "text" and said["messages"][0]["role"] != "system":
            said["messages"] = [schema.message("system", self.system), *said["messages"]]
        return said, kind

    def unread(self, record: Record) -> list[str]:
        """Return the keys of a record, and of its turns, that nothing reads."""
        if self.format.keys is None:
            return []
        record = self._renamed(record)
        return unknown_keys.find_unknown_keys(record, self.format.keys(record), self.tags)

    def _renamed(self, record: Record) -> Record:
        return columns.rename_columns(record, self.names) if self.names else record


def _reader(format: str, config: AlignConfig) -> _Reader:
    return _Reader(
        _format(format, config.format_hash),
        columns.column_mapping(config.columns),
        config.tags,
        config.system,
        config.loss_on,
    )


@dataclass
class _Tally:
    """What became of the records."""

    kinds: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_first: list[str] = field(default_factory=list)
    unread: UnknownKeyCounter = field(default_factory=UnknownKeyCounter)
    places: dict[str, str] | None = None

    def keep(self, file: str, line: int, kind: str, example_id: str) -> None:
        """Count a good row."""
        self.kinds[kind] += 1
        if self.places is not None:
            self.places.setdefault(example_id, f"{file}:{line}")

    def drop(self, file: str, line: int, error: DataError) -> None:
        """Count a bad row."""
        self.dropped[error.reason or "refused by its format"] += 1
        if len(self.dropped_first) < MAX_DROPPED_SHOWN:
            self.dropped_first.append(f"{file}:{line}: {error}")

    def counts(self) -> dict[str, Any]:
        """Return the counts as a corpus keeps them."""
        return {
            "examples": self.kinds.total(),
            "kinds": dict(self.kinds),
            "dropped": dict(self.dropped.most_common()),
            "dropped_first": self.dropped_first,
            "unread_keys": self.unread.counts(),
        }


def _examples(
    batch: pa.RecordBatch, source: str, reader: _Reader, policy: AlignPolicy, tally: _Tally
) -> Iterator[dict[str, Any]]:
    files, lines, texts = (batch.column(name).to_pylist() for name in ("file", "line", "record"))
    for file, line, text in zip(files, lines, texts, strict=True):
        try:
            record = _parse(text)
            said, kind = reader.read(record)
            example = schema.example(source, said)
        except DataError as error:
            if policy.bad_rows == "refuse":
                raise _refused(file, line, error) from error.__cause__
            tally.drop(file, line, error)
            continue
        tally.keep(file, line, kind, example["id"])
        if ignored := reader.unread(record):
            tally.unread.note(f"{file}:{line}", ignored)
        yield example


def _parse(text: str) -> Record:
    """Read a record; orjson rounds long integers, which matter in tool calls, and knows no half surrogate pairs."""
    if '"tool' in text or '"function' in text:
        return json.loads(text)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


def _is_enough(source: str, tally: _Tally, policy: AlignPolicy) -> None:
    bad, good = tally.dropped.total(), tally.kinds.total()
    reasons = "; ".join(f"{reason}: {count}" for reason, count in tally.dropped.most_common(10))
    first = f" The first: {tally.dropped_first[0]}" if tally.dropped_first else ""
    if not good:
        raise DataError(f"sources.{source}: none of {bad} rows is left ({reasons}). Is the format right?{first}")
    if bad > policy.max_bad_fraction * (bad + good):
        raise DataError(
            f"sources.{source}: {bad} of {bad + good} rows cannot be used, more than align.max_bad_fraction "
            f"{policy.max_bad_fraction} ({reasons}). Mend them, or raise the fraction.{first}"
        )


def check_rows(rows: Iterable[tuple[str, int, Record]], config: AlignConfig) -> None:
    """Try rows before a run; where bad rows are dropped, one good row is enough.

    Raises:
        DataError: A row cannot be used and `bad_rows` says refuse, none can be used, or no format fits.
        RecipeError: A format of the user's own cannot be imported.
    """
    rows = list(rows)
    names = columns.column_mapping(config.columns)
    name = config.format
    if name == "auto":
        name = _found(rows[0][0] if rows else "auto", (record for _, _, record in rows), names)
    reader = _reader(name, config)
    last: DataError | None = None
    for file, line, record in rows:
        try:
            schema.content_id(reader.read(record)[0])
        except DataError as error:
            last = _refused(file, line, error)
            if config.bad_rows == "refuse":
                raise last from error.__cause__
        else:
            if config.bad_rows == "drop":
                return
    if last:
        raise last


def _refused(file: str, line: int, error: DataError) -> DataError:
    return DataError(f"{file}:{line}: {error} Mend the row, or set align.bad_rows: drop.", error.reason)


def align_record(
    record: Record, format: str, system: str | None = None, *, tags: Tags | None = None, own: Columns | None = None
) -> Content:
    """Turn one record into what it says.

    Args:
        record: One row of a data set.
        format: Name in `formats`, or `module:function`.
        system: System message for records that carry none.
        tags: The data set's own words for roles.
        own: The data set's own column names.

    Raises:
        NotFoundError: `format` is unknown.
        DataError: The row does not have the shape of its format, or makes nothing that can be trained.
    """
    names = columns.column_mapping(own or Columns())
    said, _ = _Reader(_format(format), names, tags or Tags(), system).read(record)
    return said


def _format(name: str, sha256: str = "") -> Format:
    return user_function.load_format(name, sha256) if ":" in name else formats[name]


def detect_format(records: Iterable[Record]) -> str:
    """Tell the format of records by the first ones that look like any.

    Each record is of the first format in `ORDER` that it looks like; all must agree, so that none is read as less than
    it is. Records that look like none are passed over here, and refused when they are read.

    Raises:
        DataError: No format fits, or several do.
    """
    keys: set[str] = set()
    found: Counter[str] = Counter()
    for number, record in enumerate(records):
        if number < NUM_DETECTION_ROWS:
            keys |= record.keys()
        name = next((name for name in DETECTION_ORDER if formats[name].matches(record)), None)
        if name:
            found[name] += 1
            if found.total() == NUM_DETECTION_ROWS:
                break
    if len(found) == 1:
        return next(iter(found))
    raise _undecided(found, sorted(keys))


def _undecided(found: Counter[str], keys: list[str]) -> DataError:
    seen = f"The rows have {keys[:20]}."
    if found:
        several = " and ".join(f"{name} ({count} rows)" for name, count in found.most_common())
        return DataError(f"the rows look like {several}. {seen} Set format to the right one.", "several formats")
    return DataError(
        f"no known format fits the rows. {seen} Name the columns, like `{columns.suggest_columns(keys)}`, or set format: "
        f"{', '.join(DETECTION_ORDER)}, or module:function for one of your own.",
        "no format",
    )


def _found(place: str, records: Iterable[Record], names: columns.ColumnMapping) -> str:
    """Detect the format of records as their columns are renamed; say where they lie if that fails."""
    faults: list[DataError] = []
    try:
        return detect_format(_renamed(records, names, faults))
    except DataError as error:
        error = faults[0] if error.reason == "no format" and faults else error
        raise DataError(f"{place}: {error}", error.reason) from None


def _renamed(records: Iterable[Record], names: columns.ColumnMapping, faults: list[DataError]) -> Iterator[Record]:
    for record in records:
        if schema.BAD_ROW_KEY in record:
            continue
        try:
            yield columns.rename_columns(record, names) if names else record
        except DataError as error:
            faults[:] = faults or [error]
