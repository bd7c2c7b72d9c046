"""Multiple-choice exams in a recipe: benchmark, location, split and subjects. Imports no heavy libraries."""

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
"""Split with the few-shot examples."""

_CSV = re.compile(r"(?:.*/)?(dev|val|test)/([^/]+?)(?:_\1)?\.csv")
_PARQUET = re.compile(r"(?:.*/)?([^/]+)/(dev|validation|val|test)-[^/]+\.parquet")

Benchmark = Literal["mmlu", "cmmlu", "ceval"]


class ExamConfig(Config):
    """A multiple-choice exam: MMLU, CMMLU, C-Eval, or a custom exam in one of their formats."""

    engine: Literal["tuneline"] = "tuneline"
    """Evaluation engine."""

    name: PlainName
    """Prefix of the exam's metrics in reports."""

    benchmark: Benchmark = "mmlu"
    """Benchmark whose prompt format and subject names are used: `mmlu` (English), `cmmlu` or `ceval` (Chinese)."""

    path: LocalPath | None = None
    """Folder or zip file with `dev/<subject>.csv` (few-shot examples) and `test/<subject>.csv` or `val/<subject>.csv`,
    relative to the recipe file."""

    hub: OwnedRepoId | None = None
    """Dataset on the Hugging Face Hub instead, like `cais/mmlu`."""

    revision: str | None = None
    """Branch, tag or commit of `hub`."""

    split: Literal["test", "val"] | None = None
    """Split with the questions. If omitted, `val` for C-Eval, whose test answers are not public, and `test`
    otherwise."""

    num_shots: int = Field(5, ge=0, le=1000)
    """Number of few-shot examples per question, the first ones of `dev/`."""

    subjects: list[str] | None = Field(None, min_length=1)
    """Subjects to evaluate. If omitted, all subjects with files."""

    max_questions: int | None = Field(None, ge=1, le=MAX_ROWS)
    """Maximum number of questions per subject, the first ones of its file. If omitted, all."""

    def columns(self) -> list[str]:
        """Return the metric names used in reports and gates, without the exam's prefix."""
        return ["accuracy"]

    @property
    def question_split(self) -> str:
        """Split with the questions."""
        return self.split or ("val" if self.benchmark == "ceval" else "test")

    @model_validator(mode="after")
    def _has_one_location(self) -> "ExamConfig":
        if (self.path is None) == (self.hub is None):
            raise ValueError(
                f"exams.{self.name}: expected exactly one of path (a folder or zip file) and hub (a dataset like "
                f"cais/mmlu), got {'both' if self.path else 'neither'}. Set one of them."
            )
        if self.revision is not None and self.hub is None:
            raise ValueError(f"exams.{self.name}.revision: requires hub. Remove it.")
        return self


def engine(exam: Any) -> str:
    """Return the engine of an entry of `exams`; the default is `tuneline`."""
    if isinstance(exam, dict):
        return str(exam.get("engine", "tuneline"))
    return str(getattr(exam, "engine", "tuneline"))


AnyExam = Annotated[
    Annotated[ExamConfig, Tag("tuneline")] | Annotated[LmEvalConfig, Tag("lm_eval")], Discriminator(engine)
]
"""An entry of `exams`: a multiple-choice exam, or a task of lm-evaluation-harness."""


@dataclass(frozen=True)
class QuestionFile:
    """File with the questions of one subject in one split: a file on disk, or a member of a zip file."""

    split: str
    subject: str
    file: LocalPath
    member: str | None = None


def find_question_files(exam: ExamConfig, path: Path) -> list[QuestionFile]:
    """Find an exam's files: those with the few-shot examples and those of the evaluated split.

    Args:
        exam: As in the recipe.
        path: Folder or zip file: `exam.path`, or the folder of the downloaded Hub files.

    Raises:
        SourceError: The path does not exist, is not an exam, or lacks a subject.
    """
    key = f"exams.{exam.name}.{'path' if exam.path else 'hub'}"
    split = exam.question_split
    files = [file for file in _all_files(key, path) if file.split in (SHOTS_SPLIT, split)]
    _check_unique(key, files)
    available = {file.subject for file in files if file.split == split}
    if not available:
        raise SourceError(
            f"{key}: {path} does not contain {split}/<subject>.csv. Set a folder or zip file with MMLU's layout, or "
            f"set exams.{exam.name}.split."
        )
    subjects = available if exam.subjects is None else set(exam.subjects)
    for missing in sorted(subjects - available):
        raise SourceError(
            f"exams.{exam.name}.subjects: {path} has no questions of {missing!r} in split {split}."
            f"{did_you_mean(missing, available)} Known: {_shorten(available)}. Correct the name, or remove it."
        )
    return sorted((file for file in files if file.subject in subjects), key=lambda file: (file.split, file.subject))


def _all_files(key: str, path: Path) -> list[QuestionFile]:
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise SourceError(f"{key}: {limits.why_not_a_file(path)}. Set the folder or the zip file of an exam.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise SourceError(
            f"{key}: {path} is not a valid zip file ({error}). Set the folder or the zip file of an exam."
        ) from None
    if len(members) > limits.EXAM_FILES.value():
        raise SourceError(
            f"{key}: {path} contains {len(members):,} files; the maximum for an exam is {limits.EXAM_FILES.to_text()}. "
            f"Set the zip file of an exam. {limits.EXAM_FILES.advice()}"
        )
    files = _in_archive([member.filename for member in members], path)
    sizes = {member.filename: member.file_size for member in members}
    for file in files:
        check_file_size(f"{key}: {file.member} in {path}", sizes[str(file.member)])
    return files


def check_file_size(name: str, num_bytes: int) -> None:
    """Check the size of a question file before it is read.

    Raises:
        SourceError: It is too large.
    """
    if num_bytes > limits.EXAM_BYTES.value():
        raise SourceError(
            f"{name} has {num_bytes:,} bytes; the maximum for a question file is {limits.EXAM_BYTES.to_text()}. Remove "
            f"everything except the questions. {limits.EXAM_BYTES.advice()}"
        )


def _check_unique(key: str, files: list[QuestionFile]) -> None:
    """Reject two files of the same subject and split, of which one would be ignored."""
    first: dict[tuple[str, str], QuestionFile] = {}
    for file in files:
        if (other := first.setdefault((file.split, file.subject), file)) is not file:
            names = " and ".join(str(duplicate.member or duplicate.file) for duplicate in (other, file))
            raise SourceError(
                f"{key}: two files contain the subject {file.subject!r} of split {file.split} ({names}). Remove one, "
                "or merge them into one file."
            )
        if len(file.subject.encode()) > MAX_NAME or not file.subject.isprintable():
            raise SourceError(f"{key}: {file.subject[:80]!r}... is not a valid subject name. Rename its file.")


def _in_folder(folder: Path) -> list[QuestionFile]:
    """Look for CSV files, then for Parquet files per subject, then for a zip file that contains CSV files."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    csv_files = [
        QuestionFile(match[1], match[2], path)
        for name, path in paths.items()
        if (match := _CSV.fullmatch(name)) is not None
    ]
    if csv_files:
        return csv_files
    parquet_files = [
        QuestionFile("val" if match[2] == "validation" else match[2], match[1], path)
        for name, path in paths.items()
        if (match := _PARQUET.fullmatch(name)) is not None and match[1] not in ("all", "auxiliary_train")
    ]
    if parquet_files:
        return parquet_files
    archives = [path for name, path in paths.items() if name.endswith(".zip")]
    return next((files for path in archives if (files := _all_files("", path))), [])


def _in_archive(names: Iterable[str], archive: Path) -> list[QuestionFile]:
    matches = ((name, _CSV.fullmatch(name)) for name in names if not name.startswith("__MACOSX"))
    return [QuestionFile(match[1], match[2], archive, name) for name, match in matches if match is not None]


def _shorten(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:8]) + (f" and {len(ordered) - 8} more" if len(ordered) > 8 else "")


@cache
def _subjects(benchmark: str) -> dict[str, list[str]]:
    return dict(yaml.safe_load(SUBJECTS_FILE.read_text(encoding="utf-8"))[benchmark])


def subject_title(benchmark: str, subject: str) -> str:
    """Return the subject's name as shown in the prompt. Unknown subjects use the file name."""
    return _subjects(benchmark).get(subject, [subject.replace("_", " ")])[0]


def subject_category(benchmark: str, subject: str) -> str:
    """Return the subject's category, like `STEM`. Empty for an unknown subject."""
    return _subjects(benchmark).get(subject, ["", ""])[1]
