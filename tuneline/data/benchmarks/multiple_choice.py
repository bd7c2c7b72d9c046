"""Reader of multiple-choice exams in the formats of MMLU, CMMLU and C-Eval.

MMLU: Hendrycks et al. 2021, arXiv:2009.03300. CMMLU: Li et al. 2023, arXiv:2306.09212. C-Eval: Huang et al. 2023,
arXiv:2305.08322. A question file is a CSV file with the columns question, A, B, C, D, answer in this order and without
a header (MMLU), or with a header that includes these columns (CMMLU, C-Eval).
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tuneline.config.sections.exams import SHOTS_SPLIT, check_file_size
from tuneline.data import file_check
from tuneline.data.ingest.readers.delimited import MAX_FIELD_CHARS
from tuneline.errors import DataError
from tuneline.identity import Located, digest

LETTERS = ("A", "B", "C", "D")
FILE_COLUMNS = ("question", "a", "b", "c", "d", "answer")

Row = list[str]


@dataclass(frozen=True)
class Question:
    """A question with its choices and the letter of the correct choice."""

    subject: str
    text: str
    choices: tuple[str, ...]
    answer: str

    def id(self) -> str:
        """Return an id that follows from the content of the question."""
        return digest([self.subject, self.text, self.choices, self.answer])


@dataclass(frozen=True)
class Exam:
    """Questions by subject; `shots` are the few-shot examples before each question of `test`."""

    name: str
    shots: dict[str, list[Question]]
    test: dict[str, list[Question]]


def read_exam(located: Located) -> Exam:
    """Read a located exam; `test` holds the split that the recipe selects.

    Raises:
        DataError: A file lacks a column, a row has another number of columns, or its answer is not one of A to D.
        SourceError: A file changed since it was resolved.
    """
    file_check.check_unchanged(located)
    shots: dict[str, list[Question]] = {}
    test: dict[str, list[Question]] = {}
    for path in located.paths():
        split = path.parent.name
        questions = shots if split == SHOTS_SPLIT else test
        subject = path.stem.removesuffix(f"_{split}")
        questions[subject] = _read_questions(path, subject)
    return Exam(located.name, shots, test)


def _read_questions(path: Path, subject: str) -> list[Question]:
    questions = []
    select: Callable[[Row], Row] | None = None
    for place, row in _rows(path):
        if select is None:
            select, is_header = _cell_selector(row, path)
            if is_header:
                continue
        cells = select(row)
        if len(cells) != len(FILE_COLUMNS):
            raise DataError(f"{place}: expected question, A, B, C, D, answer; got {len(row)} columns. Fix the row.")
        if cells[5] not in LETTERS:
            raise DataError(f"{place}: the answer must be one of A, B, C, D; got {cells[5]!r}. Fix the row.")
        questions.append(Question(subject, cells[0], tuple(cells[1:5]), cells[5]))
    if not questions:
        raise DataError(f"{path} holds no questions. Add at least one, or remove the subject from subjects.")
    return questions


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a question file with their place."""
    check_file_size(str(path), path.stat().st_size)
    csv.field_size_limit(MAX_FIELD_CHARS)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            for row in reader:
                yield f"{path}:{reader.line_num}", row
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not valid CSV: {error}. Correct the syntax there.") from None
        except UnicodeDecodeError:
            raise DataError(f"{path}:{reader.line_num + 1}: the file is not UTF-8. Save it as UTF-8.") from None


def _cell_selector(first: Row, path: Path) -> tuple[Callable[[Row], Row], bool]:
    """Return a function that selects the six cells of a row, and whether the first row is a header."""
    names = [cell.strip().lower() for cell in first]
    if not {"question", "answer"} & set(names) or sum(name in names for name in FILE_COLUMNS) < 4:
        return (lambda row: row), False
    if missing := [name for name in FILE_COLUMNS if name not in names]:
        column = missing[0].upper() if len(missing[0]) == 1 else missing[0]
        hint = " C-Eval's test split is published without answers; set split: val." if column == "answer" else ""
        raise DataError(
            f"{path}: the column {column} is missing; its header has {first}.{hint} Use a file with all columns."
        )
    positions = [names.index(name) for name in FILE_COLUMNS]
    width = len(first)
    return (lambda row: [row[position] for position in positions] if len(row) == width else []), True
