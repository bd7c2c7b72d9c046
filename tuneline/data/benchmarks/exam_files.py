"""Exam files: locates the exams of a recipe. Zip files and Hub datasets are copied under the state root.

A copy has the layout `<split>/<subject>.csv` regardless of its source, so that a repacked zip file is the same exam.
"""

import csv
import lzma
import shutil
import zipfile
import zlib
from pathlib import Path

from huggingface_hub import snapshot_download

from tuneline import checksums, filesystem, state
from tuneline.config.sections import exams
from tuneline.config.sections.exams import AnyExam, ExamConfig, QuestionFile
from tuneline.config.sections.lm_eval import LmEvalConfig
from tuneline.data.benchmarks import lm_eval
from tuneline.errors import DataError, SourceError
from tuneline.identity import Located, Manifest, digest, file_entries, sha256_of

FILE_HEADER = ("question", "A", "B", "C", "D", "answer")
LOCK_TIMEOUT_SECONDS = 3600
"""How long to wait for another process that copies the same exam."""


def locate_exam(exam: ExamConfig) -> Located:
    """Locate the files of an exam and hash them.

    Raises:
        SourceError: The path does not exist, is not an exam, or lacks a subject; the Hub cannot be reached.
        DataError: A Parquet file does not have the columns of an exam.
    """
    folder = exam.path or _download(exam)
    question_files = exams.find_question_files(exam, folder)
    files = [question_file.file for question_file in question_files]
    if any(question_file.member is not None or question_file.file.suffix != ".csv" for question_file in question_files):
        folder = _copy(question_files)
        files = [folder / question_file.split / f"{question_file.subject}.csv" for question_file in question_files]
    source = folder.name if exam.hub is None else f"hub {exam.hub}@{exam.revision or 'main'}"
    return Located(name=exam.name, location=str(folder), source=source, files=file_entries(folder, files))


def _download(exam: ExamConfig) -> Path:
    patterns = ["*.csv", "*.zip", "*.parquet"]
    try:
        return Path(
            snapshot_download(str(exam.hub), repo_type="dataset", revision=exam.revision, allow_patterns=patterns)
        )
    except Exception as error:
        reason = " ".join(f"{error}".split())[:300].rstrip(".")
        raise SourceError(
            f"exams.{exam.name}.hub: {exam.hub}, revision {exam.revision or 'main'}, could not be downloaded from the "
            f"Hub: {reason}. Correct the names, or set path to a local copy; for a repository with restricted access, "
            "set HF_TOKEN."
        ) from error


def _copy(question_files: list[QuestionFile]) -> Path:
    """Copy the question files once, into a folder named by the hash of their source files."""
    origins = {question_file.file: sha256_of(question_file.file) for question_file in question_files}
    entries = [
        [question_file.split, question_file.subject, question_file.member, origins[question_file.file]]
        for question_file in question_files
    ]
    folder = state.folder("exams") / digest(entries)[:16]
    with state.lock(f"exams-{folder.name}", LOCK_TIMEOUT_SECONDS):
        if not checksums.is_usable_copy(folder):
            with filesystem.atomic_folder(folder) as unfinished:
                for question_file in question_files:
                    path = unfinished / question_file.split / f"{question_file.subject}.csv"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _write(question_file, path)
                checksums.write_for_copy(unfinished, folder)
    return folder


def _write(question_file: QuestionFile, path: Path) -> None:
    if question_file.member is not None:
        _unpack(question_file.file, question_file.member, path)
        return
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(question_file.file)
    num_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    exams.check_file_size(str(question_file.file), num_bytes)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(FILE_HEADER)
        writer.writerows(_row(row, question_file.file) for row in pq.read_table(question_file.file).to_pylist())


def _unpack(file: Path, member: str, path: Path) -> None:
    """Unpack a member of a zip file. Its size is already checked; `zipfile` reads no more than the header states."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(member) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise SourceError(
            f"{file}: {member} cannot be unpacked ({error}). Download the file again, or unpack it into a folder."
        ) from None


def _row(row: dict[str, object], path: Path) -> list[object]:
    """Convert a Parquet row: choices as a list and the answer as a number, or the same columns as in the CSV files."""
    choices, answer = row.get("choices"), row.get("answer")
    if isinstance(choices, list) and len(choices) == 4 and isinstance(answer, int) and 0 <= answer < 4:
        return [row.get("question"), *choices, "ABCD"[answer]]
    cells = {key.lower(): value for key, value in row.items()}
    if missing := [name for name in FILE_HEADER if name.lower() not in cells]:
        raise DataError(
            f"{path}: expected the columns {', '.join(FILE_HEADER)}, or question, choices (4) and answer (0 to 3); "
            f"{missing[0]} is missing, the file has {sorted(row)}. Use a file with these columns."
        )
    return [cells[name.lower()] for name in FILE_HEADER]


def locate_exams(exams: list[AnyExam]) -> Manifest:
    """Locate the exams and lm-eval tasks of a recipe and hash their files.

    Raises:
        SourceError: A path does not exist or is not an exam; a task or its data cannot be loaded.
    """
    items = (lm_eval.locate_tasks(exam) if isinstance(exam, LmEvalConfig) else locate_exam(exam) for exam in exams)
    return Manifest(kind="benchmarks", items=list(items))
