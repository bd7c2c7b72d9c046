"""Find the exams of a recipe: folders as they lie, zip files and data sets of the hub copied under the state root.

A copy has one layout, `<split>/<subject>.csv`, whatever the exam came in, so that a repacked zip file is the same exam.
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
    """Find an exam's files and hash them.

    Raises:
        SourceError: The place is missing, is no exam, or lacks a subject; the hub is out of reach.
        DataError: A Parquet file has other columns than an exam's.
    """
    place = exam.path or _from_hub(exam)
    sheets = exams.find_question_files(exam, place)
    files = [sheet.file for sheet in sheets]
    if any(sheet.member is not None or sheet.file.suffix != ".csv" for sheet in sheets):
        base = _copied(sheets)
        files = [base / sheet.split / f"{sheet.subject}.csv" for sheet in sheets]
        place = base
    source = place.name if exam.hub is None else f"hub {exam.hub}@{exam.revision or 'main'}"
    return Located(name=exam.name, location=str(place), source=source, files=file_entries(place, files))


def _from_hub(exam: ExamConfig) -> Path:
    wanted = ["*.csv", "*.zip", "*.parquet"]
    try:
        return Path(
            snapshot_download(str(exam.hub), repo_type="dataset", revision=exam.revision, allow_patterns=wanted)
        )
    except Exception as error:
        reason = " ".join(f"{error}".split())[:300].rstrip(".")
        raise SourceError(
            f"exams.{exam.name}.hub: the hub does not give {exam.hub}, revision {exam.revision or 'main'}: {reason}. "
            "Correct the names, or give a local copy by path; for a repository with restricted access set HF_TOKEN."
        ) from error


def _copied(sheets: list[QuestionFile]) -> Path:
    """Write the sheets into a folder that is named by their bytes' origin, once."""
    origins = {sheet.file: sha256_of(sheet.file) for sheet in sheets}
    told = [[sheet.split, sheet.subject, sheet.member, origins[sheet.file]] for sheet in sheets]
    folder = state.folder("exams") / digest(told)[:16]
    with state.lock(f"exams-{folder.name}", LOCK_TIMEOUT_SECONDS):
        if not checksums.is_usable_copy(folder):
            with filesystem.atomic_folder(folder) as unfinished:
                for sheet in sheets:
                    path = unfinished / sheet.split / f"{sheet.subject}.csv"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _write(sheet, path)
                checksums.write_for_copy(unfinished, folder)
    return folder


def _write(sheet: QuestionFile, path: Path) -> None:
    if sheet.member is not None:
        _unpack(sheet.file, sheet.member, path)
        return
    import pyarrow.parquet as pq

    about = pq.read_metadata(sheet.file)
    exams.check_file_size(str(sheet.file), sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups)))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(FILE_HEADER)
        writer.writerows(_row(row, sheet.file) for row in pq.read_table(sheet.file).to_pylist())


def _unpack(file: Path, member: str, path: Path) -> None:
    """Unpack a member of a zip file, whose size was checked; `zipfile` reads no more than it says."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(member) as packed, path.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise SourceError(
            f"{file}: {member} cannot be unpacked ({error}). Download the file again, or unpack it into a folder."
        ) from None


def _row(row: dict[str, object], path: Path) -> list[object]:
    """Read a row of the hub's: choices as a list and the answer as a number, or in columns as in the CSV files."""
    choices, answer = row.get("choices"), row.get("answer")
    if isinstance(choices, list) and len(choices) == 4 and isinstance(answer, int) and 0 <= answer < 4:
        return [row.get("question"), *choices, "ABCD"[answer]]
    named = {key.lower(): value for key, value in row.items()}
    if missing := [name for name in FILE_HEADER if name.lower() not in named]:
        raise DataError(
            f"{path}: an exam needs the columns {', '.join(FILE_HEADER)}, or question, choices (4) and answer (0 to 3); "
            f"{missing[0]} is missing, it has {sorted(row)}. Give another file."
        )
    return [named[name.lower()] for name in FILE_HEADER]


def locate_exams(exams: list[AnyExam]) -> Manifest:
    """Find the exams of a recipe and hash their files.

    Raises:
        SourceError: A place is missing or holds no exam.
    """
    found = (lm_eval.locate_tasks(exam) if isinstance(exam, LmEvalConfig) else locate_exam(exam) for exam in exams)
    return Manifest(kind="benchmarks", items=list(found))
