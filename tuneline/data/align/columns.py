"""Column names of a dataset: renames them to the names of the format, and suggests a mapping."""

from collections.abc import Iterable
from functools import lru_cache

from tuneline.config.sections.sources import Columns
from tuneline.data.align.formats.base import Record
from tuneline.errors import DataError, did_you_mean

ColumnMapping = dict[str, str]

QUESTION_COLUMNS = (
    "question",
    "prompt",
    "query",
    "document",
    "article",
    "content",
    "source",
    "context",
    "input",
    "problem",
)
ANSWER_COLUMNS = (
    "answer",
    "response",
    "completion",
    "summary",
    "highlights",
    "target",
    "solution",
    "label",
    "output",
    "text",
)


def column_mapping(columns: Columns) -> ColumnMapping:
    """Return the columns to rename: the format's name -> the dataset's name."""
    return {name: own for name, own in columns if own is not None}


def rename_columns(record: Record, mapping: ColumnMapping) -> Record:
    """Rename columns to the names of the format. Other columns are unchanged, unless a mapped column takes their name.

    Raises:
        DataError: The record lacks a mapped column.
    """
    for name, own in mapping.items():
        if own not in record:
            raise DataError(_missing_column(name, own, tuple(sorted(record))), f"no column {own!r}")
    mapped = set(mapping.values())
    rest = {name: value for name, value in record.items() if name not in mapped}
    return rest | {name: record[own] for name, own in mapping.items()}


@lru_cache(maxsize=256)
def _missing_column(name: str, own: str, keys: tuple[str, ...]) -> str:
    return f"the row has no column {own!r}; it has {list(keys)}.{did_you_mean(own, keys)} Correct columns.{name}."


def suggest_columns(keys: Iterable[str]) -> str:
    """Suggest a `columns:` mapping for rows with a question and an answer."""
    names = list(keys)
    if "instruction" in names and "output" not in names:
        context = "input: context, " if "context" in names and "input" not in names else ""
        return f"columns: {{{context}output: {_answer_column(names)}}}"
    question = next((name for name in QUESTION_COLUMNS if name in names), "<the question's column>")
    return f"columns: {{instruction: {question}, output: {_answer_column(names, question)}}}"


def _answer_column(names: list[str], question: str = "") -> str:
    return next((name for name in ANSWER_COLUMNS if name in names and name != question), "<the answer's column>")
