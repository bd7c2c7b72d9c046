"""Multiple-choice exams: reading only. Formats of MMLU (Hendrycks et al. 2021, arXiv:2009.03300), CMMLU and C-Eval.

CMMLU: Li et al. 2023, arXiv:2306.09212. C-Eval: Huang et al. 2023, arXiv:2305.08322. A sheet is a CSV file with the
columns question, A, B, C, D, answer in this order and without a header (MMLU), or with a header that names them among
others (CMMLU, C-Eval).
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
    """One question with its choices and the letter of the right one."""

    subject: str
    text: str
    choices: tuple[str, ...]
    answer: str

    def id(self) -> str:
        """Identify the question by its content."""
        return digest([self.subject, self.text, self.choices, self.answer])


@dataclass(frozen=True)
class Exam:
    """Questions by subject; `shots` are solved in front of each question of `test`."""

    name: str
    shots: dict[str, list[Question]]
    test: dict[str, list[Question]]


def read_exam(found: Located) -> Exam:
    """Read the exam that a manifest speaks of; `test` holds the split that the recipe asks.

    Raises:
        DataError: A sheet lacks a column, a row has another number of columns, or its answer is none of A to D.
        SourceError: A file changed since it was resolved.
    """
    file_check.check_unchanged(found)
    shots: dict[str, list[Question]] = {}
    asked: dict[str, list[Question]] = {}
    for path in found.paths():
        split = path.parent.name
        side = shots if split == SHOTS_SPLIT else asked
        subject = path.stem.removesuffix(f"_{split}")
        side[subject] = _read(path, subject)
    return Exam(found.name, shots, asked)


def _read(path: Path, subject: str) -> list[Question]:
    questions = []
    pick: Callable[[Row], Row] | None = None
    for place, row in _rows(path):
        if pick is None:
            pick, is_header = _columns(row, path)
            if is_header:
                continue
        cells = pick(row)
        if len(cells) != len(FILE_COLUMNS):
            raise DataError(f"{place}: expected question, A, B, C, D, answer; got {len(row)} columns. Mend the row.")
        if cells[5] not in LETTERS:
            raise DataError(f"{place}: the answer must be one of A, B, C, D; got {cells[5]!r}. Mend the row.")
        questions.append(Question(subject, cells[0], tuple(cells[1:5]), cells[5]))
    if not questions:
        raise DataError(f"{path} holds no questions. Give a file with at least one, or leave its subject out.")
    return questions


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a sheet, each with its place."""
    check_file_size(str(path), path.stat().st_size)
    csv.field_size_limit(MAX_FIELD_CHARS)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            for row in reader:
                yield f"{path}:{reader.line_num}", row
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not valid CSV: {error}. Correct it there.") from None
        except UnicodeDecodeError:
            raise DataError(f"{path}:{reader.line_num + 1}: the sheet is not UTF-8. Save it as UTF-8.") from None


def _columns(first: Row, path: Path) -> tuple[Callable[[Row], Row], bool]:
    """Return what picks the six cells of a row, and whether the first row is a header."""
    names = [cell.strip().lower() for cell in first]
    if not {"question", "answer"} & set(names) or sum(name in names for name in FILE_COLUMNS) < 4:
        return (lambda row: row), False
    if missing := [name for name in FILE_COLUMNS if name not in names]:
        shown = missing[0].upper() if len(missing[0]) == 1 else missing[0]
        hint = " C-Eval's test split is published without answers; set split: val." if shown == "answer" else ""
        raise DataError(f"{path}: the column {shown} is missing; its header has {first}.{hint} Give a whole sheet.")
    places = [names.index(name) for name in FILE_COLUMNS]
    width = len(first)
    return (lambda row: [row[place] for place in places] if len(row) == width else []), True
