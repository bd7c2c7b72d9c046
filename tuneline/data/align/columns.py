"""A data set's own column names, as the recipe gives them, and proposals where it should."""

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
    """Return the columns that the recipe renames: the format's name, and the data set's."""
    return {name: own for name, own in columns if own is not None}


def rename_columns(record: Record, names: ColumnMapping) -> Record:
    """Give columns the names of the format; others stay as they are, unless theirs is taken.

    Raises:
        DataError: The record lacks a column that the recipe names.
    """
    for name, own in names.items():
        if own not in record:
            raise DataError(_lacking(name, own, tuple(sorted(record))), f"no column {own!r}")
    taken = set(names.values())
    rest = {name: value for name, value in record.items() if name not in taken}
    return rest | {name: record[own] for name, own in names.items()}


@lru_cache(maxsize=256)
def _lacking(name: str, own: str, keys: tuple[str, ...]) -> str:
    return f"the row has no column {own!r}; it has {list(keys)}.{did_you_mean(own, keys)} Correct columns.{name}."


def suggest_columns(keys: Iterable[str]) -> str:
    """Propose `columns:` for rows that hold a question and an answer under names of their own."""
    known = list(keys)
    if "instruction" in known and "output" not in known:
        about = "input: context, " if "context" in known and "input" not in known else ""
        return f"columns: {{{about}output: {_answer(known)}}}"
    question = next((name for name in QUESTION_COLUMNS if name in known), "<the question's column>")
    return f"columns: {{instruction: {question}, output: {_answer(known, question)}}}"


def _answer(known: list[str], question: str = "") -> str:
    return next((name for name in ANSWER_COLUMNS if name in known and name != question), "<the answer's column>")
