"""Prompts of a dataset for inference: rows of any format, with or without an answer.

The formats require an answer to train on. A row without one gets a placeholder before alignment and loses it
afterwards, so every format is read by the code that reads training data.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tuneline.config.sections.sources import AlignConfig, Tags
from tuneline.data import corpus, schema
from tuneline.data.align import align, columns
from tuneline.data.align.formats import chat, fields, preference
from tuneline.data.align.formats.base import Record
from tuneline.data.corpus import Corpus
from tuneline.data.schema import Content, Kind, Message
from tuneline.errors import DataError

PLACEHOLDER = "\ue000no answer\ue000"
"""Stands for a missing answer during alignment; a private-use character of Unicode that no text contains."""

ALPACA_FORMATS = ("auto", "alpaca")


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and its reference answer if the row has one."""

    place: str
    """`file:line` of the row."""

    id: str
    """Value of the row's column `id`; its place if it has none."""

    messages: list[Message]
    """Messages before the answer; empty for a text."""

    tools: str = ""
    """JSON schemas of the tools as JSON text."""

    text: str = ""
    """Text to continue, for rows of format `text`."""

    reference: str | None = None


@dataclass(frozen=True)
class PromptRows:
    """The usable rows in order, and the counts of the others."""

    rows: list[PromptRow]
    counts: dict[str, Any] = field(default_factory=dict)
    """`format`, `dropped` (reason -> number) and `dropped_first` (place and error of the first dropped rows)."""


def read_prompts(records: Corpus, config: AlignConfig) -> PromptRows:
    """Read the prompts of one dataset.

    Args:
        records: Rows of one dataset, from `ingest`.
        config: Format and policy, as for training.

    Raises:
        DataError: A row cannot be used and `bad_rows` is refuse, too many or all rows were dropped, or no format
            matches.
    """
    source = str(records.identity["source"])
    name = config.format
    if name == "auto":
        mapping = columns.column_mapping(config.columns)
        name = align.detect(f"sources.{source}", (_complete(row, config) for _, _, row in _records(records)), mapping)
    reader = align.RowReader(align.load_format(name, config.format_hash), {}, config.tags, config.system)
    tally = align.RecordCounts()
    rows = []
    for file, line, record in _records(records):
        try:
            content, kind = reader.read(_renamed(_complete(record, config), config))
            example_id = schema.content_id(content)
        except DataError as error:
            if config.bad_rows == "refuse":
                raise align.bad_row_error(file, line, error) from error.__cause__
            tally.count_dropped(file, line, error)
            continue
        tally.count_used(file, line, kind, example_id)
        rows.append(_row(f"{file}:{line}", record, content, kind))
    align.check_num_usable(source, tally, config)
    counts = tally.counts()
    return PromptRows(rows, {"format": name, "dropped": counts["dropped"], "dropped_first": counts["dropped_first"]})


def _records(records: Corpus) -> Iterator[tuple[str, int, Record]]:
    for batch in corpus.iter_batches(records.only()):
        places = (batch.column(name).to_pylist() for name in ("file", "line", "record"))
        for file, line, text in zip(*places, strict=True):
            yield file, line, align.parse_record(text)


def _renamed(record: Record, config: AlignConfig) -> Record:
    mapping = columns.column_mapping(config.columns)
    return columns.rename_columns(record, mapping) if mapping and schema.BAD_ROW_KEY not in record else record


def _complete(record: Record, config: AlignConfig) -> Record:
    """Add the placeholder to a record without an answer; names of columns are those of the dataset."""
    if schema.BAD_ROW_KEY in record or ":" in config.format:
        return record
    own = columns.column_mapping(config.columns)
    for name in fields.TURN_COLUMNS:
        turns = record.get(own.get(name, name))
        if fields.is_list_of_objects(turns):
            return {**record, own.get(name, name): _complete_turns(turns, config.tags)}
    if config.format not in ALPACA_FORMATS or preference.looks_like_preference(record):
        return record
    return _complete_question(record, own.get("instruction", "instruction"), own.get("output", "output"))


def _complete_question(record: Record, question: str, output: str) -> Record:
    """Add the placeholder to a question without an answer, also to the prompt-only rows of trl (`prompt`)."""
    prompt = record.get("prompt")
    is_prompt_only = question not in record and not {"completion", "response", "chosen", output} & record.keys()
    if is_prompt_only and fields.is_list_of_objects(prompt):
        turns = _complete_turns(prompt, Tags())
        return {"messages": turns, **{name: value for name, value in record.items() if name != "prompt"}}
    if is_prompt_only and prompt:
        others = {name: value for name, value in record.items() if name != "prompt"}
        return {**others, question: prompt, output: PLACEHOLDER}
    return {**record, output: PLACEHOLDER} if record.get(question) and not record.get(output) else record


def _complete_turns(turns: list[Record], tags: Tags) -> list[Record]:
    """Add the placeholder to a chat that ends with another role than the assistant, or with an empty answer."""
    speaker, name = chat.speaker_and_content_keys(turns[-1], tags)
    try:
        last = chat.read_messages([{**turns[-1], name: turns[-1].get(name) or ""}], "messages", tags)[0]["role"]
    except DataError:
        return turns
    if last == "assistant":
        is_empty = not turns[-1].get(name) and not turns[-1].get("tool_calls") and not turns[-1].get("function_call")
        return [*turns[:-1], {**turns[-1], name: PLACEHOLDER}] if is_empty else turns
    role = tags.assistant or ("gpt" if speaker == "from" else "assistant")
    return [*turns, {speaker: role, name: PLACEHOLDER}]


def _row(place: str, record: Record, content: Content, kind: Kind) -> PromptRow:
    """Split an example into prompt and reference."""
    identifier = record.get("id")
    row_id = str(identifier) if isinstance(identifier, str | int) and identifier != "" else place
    if kind == "text":
        return PromptRow(place, row_id, [], text=content["text"])
    if kind == "preference":
        return PromptRow(place, row_id, content["messages"], content["tools"], reference=_text(content["chosen"][-1]))
    reference = _text(content["messages"][-1]) if content["label"] is not False else None
    return PromptRow(place, row_id, content["messages"][:-1], content["tools"], reference=reference)


def _text(answer: Message) -> str | None:
    """Return the text of an answer; None for a placeholder and for an answer that only calls tools."""
    return answer["content"] if answer["content"] and answer["content"] != PLACEHOLDER else None
