"""Multiple-choice exams in a recipe: which one, where its files lie, which of them are read. Imports nothing heavy."""

import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Discriminator, Field, Tag, model_validator

from tuneline import limits
from tuneline.config.base import MAX_NAME, MAX_ROWS, Config, LocalPath, OwnedRepoId, PlainName
from tuneline.config.sections.lm_eval import LmEvalConfig
from tuneline.errors import SourceError, did_you_mean

SUBJECTS_FILE = Path(__file__).parent / "subjects.yaml"
SHOTS_SPLIT = "dev"
"""The split whose questions are shown solved."""

_SHEET = re.compile(r"(?:.*/)?(dev|val|test)/([^/]+?)(?:_\1)?\.csv")
_PARQUET = re.compile(r"(?:.*/)?([^/]+)/(dev|validation|val|test)-[^/]+\.parquet")

Benchmark = Literal["mmlu", "cmmlu", "ceval"]


class ExamConfig(Config):
    """A multiple-choice exam: MMLU, CMMLU, C-Eval, or one of your own in the format of one of them."""

    engine: Literal["tuneline"] = "tuneline"
    """Who asks and scores."""

    name: PlainName
    """Prefix of the exam's metrics."""

    benchmark: Benchmark = "mmlu"
    """Whose prompt is used, and whose subjects: `mmlu` (English), `cmmlu` or `ceval` (Chinese)."""

    path: LocalPath | None = None
    """Folder or zip file with `dev/<subject>.csv` (the shots) and `test/<subject>.csv` or `val/<subject>.csv`,
    relative to the recipe's file."""

    hub: OwnedRepoId | None = None
    """Data set of the hub instead, like `cais/mmlu`."""

    revision: str | None = None
    """Branch, tag or commit of `hub`."""

    split: Literal["test", "val"] | None = None
    """Which questions are asked; left out, `val` for C-Eval, whose test has no public answers, else `test`."""

    num_shots: int = Field(5, ge=0, le=1000)
    """Solved questions in front of each question, the first of `dev/`."""

    subjects: list[str] | None = Field(None, min_length=1)
    """Names of the subjects that are asked; left out, all that have files."""

    max_questions: int | None = Field(None, ge=1, le=MAX_ROWS)
    """Questions asked of each subject, the first of its file; left out, all."""

    def columns(self) -> list[str]:
        """Return the names of the metrics in tables and gates, without the name in front."""
        return ["accuracy"]

    @property
    def asked(self) -> str:
        """The split that is asked."""
        return self.split or ("val" if self.benchmark == "ceval" else "test")

    @model_validator(mode="after")
    def _one_place(self) -> "ExamConfig":
        if (self.path is None) == (self.hub is None):
            raise ValueError(
                f"exams.{self.name}: give one of path (a folder or a zip file) and hub (a data set like cais/mmlu), "
                f"got {'both' if self.path else 'neither'}."
            )
        if self.revision is not None and self.hub is None:
            raise ValueError(f"exams.{self.name}.revision: only a data set of the hub has one. Leave it out.")
        return self


def engine(exam: Any) -> str:
    """Tell which engine an entry of `exams` names; none means ours."""
    if isinstance(exam, dict):
        return str(exam.get("engine", "tuneline"))
    return str(getattr(exam, "engine", "tuneline"))


AnyExam = Annotated[
    Annotated[ExamConfig, Tag("tuneline")] | Annotated[LmEvalConfig, Tag("lm_eval")], Discriminator(engine)
]
"""An entry of `exams`: an exam that we ask, or a task of lm-evaluation-harness."""


@dataclass(frozen=True)
class QuestionFile:
    """The questions of one subject in one split: a file of its own, or a member of a zip file."""

    split: str
    subject: str
    file: LocalPath
    member: str | None = None


def find_question_files(exam: ExamConfig, place: Path) -> list[QuestionFile]:
    """Find the files of an exam: those of its shots, and of the split that is asked.

    Args:
        exam: As in the recipe.
        place: Folder or zip file; `exam.path`, or where the hub's files were copied.

    Raises:
        SourceError: The place is missing or is no exam, or lacks a subject.
    """
    key = f"exams.{exam.name}.{'path' if exam.path else 'hub'}"
    found = [sheet for sheet in _all(key, place) if sheet.split in (SHOTS_SPLIT, exam.asked)]
    _check_once(key, found)
    have = {sheet.subject for sheet in found if sheet.split == exam.asked}
    if not have:
        raise SourceError(
            f"{key}: {place} has no {exam.asked}/<subject>.csv. Give a folder or a zip file like MMLU's, or set "
            f"exams.{exam.name}.split."
        )
    wanted = have if exam.subjects is None else set(exam.subjects)
    for missing in sorted(wanted - have):
        raise SourceError(
            f"exams.{exam.name}.subjects: {place} has no questions of {missing!r} in split {exam.asked}."
            f"{did_you_mean(missing, have)} It has {_some(have)}. Correct the name, or leave it out."
        )
    return sorted((sheet for sheet in found if sheet.subject in wanted), key=lambda each: (each.split, each.subject))


def _all(key: str, place: Path) -> list[QuestionFile]:
    if place.is_dir():
        return _in_folder(place)
    if not place.is_file():
        raise SourceError(f"{key}: {limits.why_not_a_file(place)}. Give the folder or the zip file of an exam.")
    try:
        with zipfile.ZipFile(place) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise SourceError(f"{key}: {place} is no zip file ({error}). Give the folder or the zip file.") from None
    if len(members) > limits.EXAM_FILES.value():
        raise SourceError(
            f"{key}: {place} holds {len(members):,} files, and an exam at most {limits.EXAM_FILES.shown()}. Give the "
            f"zip file of an exam. {limits.EXAM_FILES.advice()}"
        )
    found = _named([member.filename for member in members], place)
    sizes = {member.filename: member.file_size for member in members}
    for sheet in found:
        check_file_size(f"{key}: {sheet.member} in {place}", sizes[str(sheet.member)])
    return found


def check_file_size(place: str, num_bytes: int) -> None:
    """Check the size of a sheet before it is read.

    Raises:
        SourceError: It is too large.
    """
    if num_bytes > limits.EXAM_BYTES.value():
        raise SourceError(
            f"{place} has {num_bytes:,} bytes, and a sheet of an exam at most {limits.EXAM_BYTES.shown()}. Give the "
            f"questions alone. {limits.EXAM_BYTES.advice()}"
        )


def _check_once(key: str, found: list[QuestionFile]) -> None:
    """Refuse two sheets of one subject in one split: one of them would be lost."""
    first: dict[tuple[str, str], QuestionFile] = {}
    for sheet in found:
        if (other := first.setdefault((sheet.split, sheet.subject), sheet)) is not sheet:
            names = " and ".join(str(each.member or each.file) for each in (other, sheet))
            raise SourceError(
                f"{key}: two sheets hold the subject {sheet.subject!r} of split {sheet.split} ({names}), and one would "
                "be lost. Keep one, or put both into one file."
            )
        if len(sheet.subject.encode()) > MAX_NAME or not sheet.subject.isprintable():
            raise SourceError(f"{key}: {sheet.subject[:80]!r}... is no name of a subject. Rename its file.")


def _in_folder(place: Path) -> list[QuestionFile]:
    """Look for sheets, for Parquet files of subjects, then for a zip file that holds sheets."""
    paths = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}
    plain = [
        QuestionFile(match[1], match[2], path)
        for name, path in paths.items()
        if (match := _SHEET.fullmatch(name)) is not None
    ]
    if plain:
        return plain
    tables = [
        QuestionFile("val" if match[2] == "validation" else match[2], match[1], path)
        for name, path in paths.items()
        if (match := _PARQUET.fullmatch(name)) is not None and match[1] not in ("all", "auxiliary_train")
    ]
    if tables:
        return tables
    packed = [path for name, path in paths.items() if name.endswith(".zip")]
    return next((found for path in packed if (found := _all("", path))), [])


def _named(names: Iterable[str], archive: Path) -> list[QuestionFile]:
    matches = ((name, _SHEET.fullmatch(name)) for name in names if not name.startswith("__MACOSX"))
    return [QuestionFile(match[1], match[2], archive, name) for name, match in matches if match is not None]


def _some(names: Iterable[str]) -> str:
    known = sorted(names)
    return ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")


@cache
def _known(benchmark: str) -> dict[str, list[str]]:
    return dict(yaml.safe_load(SUBJECTS_FILE.read_text(encoding="utf-8"))[benchmark])


def subject_title(benchmark: str, subject: str) -> str:
    """Return the name of a subject as the prompt shows it; of an unknown one, the file's."""
    return _known(benchmark).get(subject, [subject.replace("_", " ")])[0]


def subject_category(benchmark: str, subject: str) -> str:
    """Return the category of a subject, like `STEM`; empty for an unknown one."""
    return _known(benchmark).get(subject, ["", ""])[1]
