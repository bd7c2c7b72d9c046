"""Local data sets and exams: find the files, know them by their bytes, read the rows.

A row travels as its own JSON text with the file and line it stands in, so nothing is unified, filled or retyped before
its format has read it, and every later complaint can name its place.
"""

import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset

from tuneline.config.data import ExamConfig, IngestConfig, SourceConfig
from tuneline.config.places import check_exam, check_source
from tuneline.data import schema
from tuneline.data.corpus import Corpus
from tuneline.errors import DataError, SourceError
from tuneline.identity import Located, Manifest, canonical_json, file_entries


def locate(sources: list[SourceConfig]) -> Manifest:
    """Find the data sets of a recipe and hash their bytes.

    Raises:
        SourceError: A file is missing, or is of a kind that is not read.
    """
    return Manifest(kind="sources", items=[_locate_file(source) for source in sources])


def locate_exams(exams: list[ExamConfig]) -> Manifest:
    """Find the exams of a recipe and hash their files.

    Raises:
        SourceError: A folder is missing or holds no test.
    """
    return Manifest(kind="benchmarks", items=[_locate_exam(exam) for exam in exams])


def _locate_file(source: SourceConfig) -> Located:
    check_source(source)
    files = file_entries(source.path.parent, [source.path])
    return Located(name=source.name, location=str(source.path.parent), source=source.path.name, files=files)


def _locate_exam(exam: ExamConfig) -> Located:
    check_exam(exam)
    paths = [*exam.path.glob("dev/*.csv"), *exam.path.glob("test/*.csv")]
    return Located(name=exam.name, location=str(exam.path), source=exam.path.name, files=file_entries(exam.path, paths))


def ingest(sources: Manifest, config: IngestConfig) -> Corpus:
    """Read the rows of one data set.

    Returns:
        Records: `file`, `line` (from 1; the row's number in a JSON list), `record` (JSON text).

    Raises:
        DataError: A line does not parse, a row is no object, or there are no rows.
        SourceError: The file is not the one that was resolved.
    """
    found = sources.item(config.name)
    same_bytes(found)
    rows: list[dict[str, Any]] = []
    left_out = 0
    for place, number, record in _records(found):
        if config.max_rows is not None and len(rows) >= config.max_rows:
            left_out += 1
            continue
        rows.append({"file": place, "line": number, "record": canonical_json(record)})
    if not rows:
        raise _no_rows(found)
    counts = {"rows": len(rows), "rows_beyond_max_rows": left_out}
    return Corpus({"records": Dataset.from_list(rows, features=schema.RECORD)}, {"source": config.name}, counts)


def first_rows(found: Located, num_rows: int) -> list[tuple[str, int, dict[str, Any]]]:
    """Return the first rows of a data set with file and line, to be looked at before a run.

    Raises:
        DataError: One does not parse, or there are none.
    """
    rows = list(islice(_records(found), num_rows))
    if not rows:
        raise _no_rows(found)
    return rows


def _no_rows(found: Located) -> DataError:
    return DataError(f"sources.{found.name}: {found.paths()[0]} holds no rows. Give a file with at least one.")


def same_bytes(found: Located) -> None:
    """Check that the files are still those that the manifest speaks of.

    Raises:
        SourceError: One is gone or has changed.
    """
    for path in found.paths():
        if not path.is_file():
            raise SourceError(f"{found.name}: {path} is gone since it was resolved. Restore it, or run again.")
    now = file_entries(Path(found.location), found.paths())
    changed = [
        file.name for file, was in zip(now, sorted(found.files, key=lambda f: f.name), strict=True) if file != was
    ]
    if changed:
        raise SourceError(f"{found.name}: {changed[0]} changed while the run was going on. Run again on the new bytes.")


def _records(found: Located) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for path in found.paths():
        rows = _json_lines(path) if ".jsonl" in path.name else _json_list(path)
        for number, row in rows:
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: a row must be a JSON object, got {type(row).__name__} {row!r:.60}.")
            yield path.name, number, row


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parse(path, number, line.rstrip("\r\n"))


def _json_list(path: Path) -> Iterator[tuple[int, Any]]:
    with _open(path) as file:
        text = file.read()
    rows = _parse(path, 1, text)
    if not isinstance(rows, list):
        raise DataError(
            f"{path}: expected a JSON list of rows, got {type(rows).__name__}. Name the file .jsonl if "
            "it holds one object a line."
        )
    yield from enumerate(rows, start=1)


def _parse(path: Path, first_line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{first_line + error.lineno - 1}"
        near = text[max(0, error.pos - 20) : error.pos + 20].strip()
        raise DataError(f"{place}: not valid JSON: {error.msg} at column {error.colno}, near {near!r}.") from None


def _open(path: Path) -> Any:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8", newline="\n")
