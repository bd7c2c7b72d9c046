"""Which files the path of a data set means: a file, a folder or a pattern. Names only; nothing is read.

Of a folder every file counts, whatever its depth, but for those that describe data and hold none (`IGNORED`, hidden
files) and the caches that `datasets` leaves beside its own (`cache-*.arrow`).
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
"""File names that a message shows of each kind."""


@dataclass(frozen=True)
class DataFiles:
    """Files of one kind, in order, and the folder that all of them lie below."""

    folder: Path
    paths: list[Path]


def file_kind(path: Path) -> str | None:
    """Return the kind that a name stands for, like `jsonl`, or None for one that is not read."""
    ending = _unpacked(path).suffix.lower().removeprefix(".")
    if ending in TEXT_KINDS or (ending in TABLE_KINDS and compression(path) is None):
        return ending
    return None


def compression(path: Path) -> str | None:
    """Return what a file is packed with by its name, or None."""
    return COMPRESSIONS.get(path.suffix.lower())


def _unpacked(path: Path) -> Path:
    return path.with_suffix("") if compression(path) else path


def find(path: Path) -> DataFiles:
    """Find the files that a path means.

    Raises:
        SourceError: There are none, they are of several kinds or of one that is not read, or two hold the same rows.
    """
    if path.is_file():
        found = DataFiles(path.parent, [path])
    elif odd := limits.special_file_kind(path):
        raise SourceError(f"{path} is {odd}, and rows are read from plain files. Give a file.")
    elif path.is_dir():
        found = DataFiles(path, _in_folder(path))
    else:
        found = _matching(path)
    _one_kind(found)
    _once(found)
    return found


def _in_folder(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise SourceError(f"{folder} holds the splits {', '.join(splits)}. Give the folder of one of them.")
    paths = _data_files(folder, folder.rglob("*"))
    if not paths:
        raise SourceError(
            f"the folder {folder} holds no data. Give one with files of these kinds: {SUPPORTED_SUFFIXES}."
        )
    return paths


def _matching(pattern: Path) -> DataFiles:
    folder = next(up for up in pattern.parents if up.is_dir() or up == up.parent)
    rest = pattern.relative_to(folder)
    if not any(sign in rest.parts[0] for sign in "*?["):
        raise SourceError(_missing(folder, rest.parts))
    paths = _data_files(folder, folder.glob(rest.as_posix()))
    if not paths:
        raise SourceError(f"no file matches {pattern}. Correct the pattern (`**` stands for folders of any depth).")
    return DataFiles(folder, paths)


def _missing(folder: Path, gone: tuple[str, ...]) -> str:
    """Say which part of a path is not there, and what is near it."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    what = "file" if len(gone) == 1 else "folder"
    return f"there is no {what} {folder / gone[0]}.{did_you_mean(gone[0], names)} Correct the path."


def _data_files(folder: Path, paths: Iterable[Path]) -> list[Path]:
    return sorted({path for path in paths if not path.is_dir() and not _is_ignored(path.relative_to(folder))})


def _is_ignored(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    cache = path.name.startswith("cache-") and path.suffix == ".arrow"
    return hidden or cache or path.name in IGNORED or path.name.upper().startswith(IGNORED_STARTS)


def _one_kind(found: DataFiles) -> None:
    by_kind: dict[str, list[str]] = {}
    for path in found.paths:
        if not path.is_file():
            raise SourceError(
                f"{path} is {limits.special_file_kind(path)}, and rows are read from plain files. Fetch the file, or "
                "remove it from the folder."
            )
        by_kind.setdefault(file_kind(path) or "", []).append(path.relative_to(found.folder).as_posix())
    if len(by_kind) > 1:
        listed = "; ".join(f"{kind or 'not read'}: {_some(names)}" for kind, names in by_kind.items())
        raise SourceError(
            f"{found.folder} holds files of several kinds ({listed}). Give a pattern that matches one kind, "
            f"like {found.folder}/*.jsonl."
        )
    if "" in by_kind:
        raise SourceError(
            f"{_some(by_kind[''])} is of a kind that is not read. Give one of these: {SUPPORTED_SUFFIXES}."
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + more


def _once(found: DataFiles) -> None:
    """Refuse `a.jsonl` beside `a.jsonl.gz`: most likely the same rows, which would then be seen twice."""
    plain = Counter(_unpacked(path) for path in found.paths)
    for path, count in plain.items():
        if count > 1:
            raise SourceError(f"{path} is there both packed and unpacked. Keep one, or give a pattern for one.")
