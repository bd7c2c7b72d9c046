"""Multiple-choice exams in MMLU's file format (Hendrycks et al. 2021, arXiv:2009.03300): reading only."""

import csv
from dataclasses import dataclass
from pathlib import Path

from tuneline.data import sources
from tuneline.errors import DataError
from tuneline.identity import Located, digest

LETTERS = ("A", "B", "C", "D")


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
    """Read the exam that a manifest speaks of.

    Raises:
        DataError: A row has not six columns, or its answer is none of A to D.
        SourceError: A file changed since it was resolved.
    """
    sources.same_bytes(found)
    by_split: dict[str, dict[str, list[Question]]] = {"dev": {}, "test": {}}
    for path in found.paths():
        by_split[path.parent.name][path.stem] = _read(path)
    return Exam(found.name, by_split["dev"], by_split["test"])


def _read(path: Path) -> list[Question]:
    questions = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if len(row) != 6:
                raise DataError(f"{place}: expected question, A, B, C, D, answer; got {len(row)} columns.")
            if row[5] not in LETTERS:
                raise DataError(f"{place}: the answer must be one of A, B, C, D; got {row[5]!r}.")
            questions.append(Question(path.stem, row[0], tuple(row[1:5]), row[5]))
    if not questions:
        raise DataError(f"{path} holds no questions.")
    return questions
