"""Alignment: records of any known format -> examples of the one schema.

A row that cannot be used is refused with its place, or dropped and counted by reason, as the recipe says.
"""

import json
from collections import Counter
from collections.abc import Iterable

from datasets import Dataset

from tuneline.config.data import AlignConfig
from tuneline.data import schema
from tuneline.data.corpus import Corpus
from tuneline.data.formats import formats
from tuneline.data.formats.base import Record
from tuneline.data.schema import Message
from tuneline.errors import DataError

SHOWN = 5


def align(records: Corpus, config: AlignConfig) -> Corpus:
    """Give every record the one shape.

    Returns:
        Examples in the order of the records; counts hold what was dropped, by reason, with the first places.

    Raises:
        DataError: A row cannot be used and `bad_rows` says refuse, or no row is left.
    """
    source = records.identity["source"]
    examples, dropped, places = [], Counter[str](), []
    for row in records.only():
        try:
            messages = align_record(json.loads(row["record"]), config.format, config.system)
        except DataError as error:
            if config.bad_rows == "refuse":
                raise _refused(row["file"], row["line"], error) from None
            dropped[str(error)[:80]] += 1
            places.append(f"{row['file']}:{row['line']}")
            continue
        examples.append(schema.example(source, messages))
    if not examples:
        raise DataError(f"sources.{source}: none of {len(records.only())} rows is left. Is the format right?")
    counts = {
        **records.counts,
        "format": config.format,
        "examples": len(examples),
        "dropped": dict(dropped),
        "dropped_first": places[:SHOWN],
    }
    return Corpus({"examples": Dataset.from_list(examples, features=schema.EXAMPLE)}, {"source": source}, counts)


def check_rows(rows: Iterable[tuple[str, int, Record]], config: AlignConfig) -> None:
    """Try rows before a run; where bad rows are dropped, one good row is enough.

    Raises:
        DataError: A row cannot be used and `bad_rows` says refuse, or none can be used.
    """
    last: DataError | None = None
    for file, line, record in rows:
        try:
            align_record(record, config.format, config.system)
        except DataError as error:
            last = _refused(file, line, error)
            if config.bad_rows == "refuse":
                raise last from None
        else:
            if config.bad_rows == "drop":
                return
    if last:
        raise last


def _refused(file: str, line: int, error: DataError) -> DataError:
    return DataError(f"{file}:{line}: {error} Mend the row, or set align.bad_rows: drop.")


def align_record(record: Record, format: str, system: str | None = None) -> list[Message]:
    """Turn one record into messages.

    Args:
        record: One row of a data set.
        format: Name in `formats`.
        system: System message for records that carry none.

    Raises:
        NotFoundError: `format` is unknown.
        DataError: The row does not have the shape of its format, or makes no conversation that can be trained.
    """
    messages = formats[format](record)
    if system and messages[0]["role"] != "system":
        messages = [schema.message("system", system), *messages]
    _is_trainable(messages)
    return messages


def _is_trainable(messages: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise DataError("a system message stands after the first turn.")
    if "user" not in roles:
        raise DataError("the conversation has no user turn.")
    if roles[-1] != "assistant":
        raise DataError(f"the conversation ends on a {roles[-1]} turn, so its last question has no answer.")
    for message in messages:
        if message["role"] != "system" and not message["content"].strip() and not message["tool_calls"]:
            raise DataError(f"a {message['role']} turn is empty.")
