"""Find the data files that a dataset's path matches: a file, a folder or a glob pattern. No file is read.

In a folder every file counts, at any depth, except metadata files (`IGNORED`, hidden files) and the cache files that
`datasets` writes (`cache-*.arrow`).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tuneline import limits
from tuneline.errors import SourceError, did_you_mean

TEXT_KINDS = ("json", "jsonl", "csv", "tsv", "txt")
TABLE_KINDS = ("parquet", "arrow")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
SUPPORTED_SUFFIXES = f"{', '.join(f'.{kind}' for kind in TEXT_KINDS)} (these also as .gz or .zst), .parquet, .arrow"

IGNORED = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
IGNORED_STARTS = (".", "README", "LICENSE", "LICENCE")
MAX_NAMES_SHOWN = 3
"""File names that a message lists per kind."""


@dataclass(frozen=True)
class DataFiles:
    """Files of one kind, in order, and their common folder."""

    folder: Path
    paths: list[Path]


def file_kind(path: Path) -> str | None:
    """Return a file's kind by its name, like `jsonl`, or None if the kind is not supported."""
    suffix = _decompressed_name(path).suffix.lower().removeprefix(".")
    if suffix in TEXT_KINDS or (suffix in TABLE_KINDS and compression(path) is None):
        return suffix
    return None


def compression(path: Path) -> str | None:
    """Return a file's compression by its name, or None."""
    return COMPRESSIONS.get(path.suffix.lower())


def _decompressed_name(path: Path) -> Path:
    return path.with_suffix("") if compression(path) else path


def find(path: Path) -> DataFiles:
    """Find the files that a path matches.

    Raises:
        SourceError: No file matches, files have different or unsupported kinds, or a file exists twice.
    """
    if path.is_file():
        files = DataFiles(path.parent, [path])
    elif kind := limits.special_file_kind(path):
        raise SourceError(f"expected a plain file, but {path} is {kind}. Set the path of a file.")
    elif path.is_dir():
        files = DataFiles(path, _in_folder(path))
    else:
        files = _matching(path)
    _check_kind(files)
    _check_duplicates(files)
    return files


def _in_folder(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise SourceError(f"{folder} contains the splits {', '.join(splits)}. Set the folder of one split.")
    paths = _data_files(folder, folder.rglob("*"))
    if not paths:
        raise SourceError(
            f"folder {folder} contains no data files. Set a folder with files of these kinds: {SUPPORTED_SUFFIXES}."
        )
    return paths


def _matching(pattern: Path) -> DataFiles:
    folder = next(parent for parent in pattern.parents if parent.is_dir() or parent == parent.parent)
    rest = pattern.relative_to(folder)
    if not any(wildcard in rest.parts[0] for wildcard in "*?["):
        raise SourceError(_missing(folder, rest.parts))
    paths = _data_files(folder, folder.glob(rest.as_posix()))
    if not paths:
        raise SourceError(f"no file matches {pattern}. Correct the pattern (`**` matches folders at any depth).")
    return DataFiles(folder, paths)


def _missing(folder: Path, missing_parts: tuple[str, ...]) -> str:
    """Return an error message that names the first missing part of a path, with the closest existing name."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    kind = "file" if len(missing_parts) == 1 else "folder"
    path = folder / missing_parts[0]
    return f"{kind} {path} does not exist.{did_you_mean(missing_parts[0], names)} Correct the path."


def _data_files(folder: Path, paths: Iterable[Path]) -> list[Path]:
    return sorted({path for path in paths if not path.is_dir() and not _is_ignored(path.relative_to(folder))})


def _is_ignored(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    cache = path.name.startswith("cache-") and path.suffix == ".arrow"
    return hidden or cache or path.name in IGNORED or path.name.upper().startswith(IGNORED_STARTS)


def _check_kind(files: DataFiles) -> None:
    by_kind: dict[str, list[str]] = {}
    for path in files.paths:
        if not path.is_file():
            raise SourceError(
                f"expected plain files, but {path} is {limits.special_file_kind(path)}. Download the file, or remove "
                "it from the folder."
            )
        by_kind.setdefault(file_kind(path) or "", []).append(path.relative_to(files.folder).as_posix())
    if len(by_kind) > 1:
        listing = "; ".join(f"{kind or 'not supported'}: {_shorten(names)}" for kind, names in by_kind.items())
        raise SourceError(
            f"{files.folder} contains files of several kinds ({listing}). Set a pattern that matches one kind, "
            f"like {files.folder}/*.jsonl."
        )
    if "" in by_kind:
        raise SourceError(
            f"{_shorten(by_kind[''])} is of an unsupported kind. Set a file of another kind: {SUPPORTED_SUFFIXES}."
        )


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + more


def _check_duplicates(files: DataFiles) -> None:
    """Reject `a.jsonl` next to `a.jsonl.gz`, which most likely contain the same rows."""
    counts = Counter(_decompressed_name(path) for path in files.paths)
    for path, count in counts.items():
        if count > 1:
            raise SourceError(f"{path} exists both compressed and uncompressed. Remove one, or set a pattern for one.")
