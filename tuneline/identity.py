"""Identity by content: hashes of values, files and folders, and the manifest that carries them.

A file is hashed once: the digest is kept beside its size, time and inode, and the bytes are read again only where
those changed. Where a thing lies, when it was found and by whom is never part of its identity.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tuneline import limits, state


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no escapes of what UTF-8 can hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """Return the sha256 of a JSON-able value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class FileEntry(BaseModel):
    """One file, known by its bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Path relative to the folder that the manifest speaks of."""

    size: int
    sha256: str


class Located(BaseModel):
    """A named set of files: one data set, one exam, one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    location: str
    """Folder that holds the files, on this machine; no part of the identity."""

    source: str
    """Where it came from, in words: a path, a wheel, a hub name with its revision; no part of the identity."""

    licence: str = "unknown"
    files: list[FileEntry]

    def paths(self) -> list[Path]:
        """Return where the files lie."""
        return [Path(self.location) / file.name for file in self.files]

    def content_hash(self) -> str:
        """Hash the names and the bytes of the files."""
        return digest([[file.name, file.sha256] for file in sorted(self.files, key=lambda file: file.name)])


class Manifest(BaseModel):
    """What `resolve` hands on: which bytes a run starts from. Nothing is copied."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    items: list[Located]

    def content_hash(self) -> str:
        """Hash names and bytes; equal for the same content found elsewhere."""
        named = [
            [item.name if self.kind in ("sources", "benchmarks") else "", item.content_hash()] for item in self.items
        ]
        return digest([self.kind, named])

    def item(self, name: str) -> Located:
        """Return the item called `name`; a manifest without it is our own mistake."""
        return next(item for item in self.items if item.name == name)

    def only(self) -> Located:
        """Return the item of a manifest that holds just one."""
        (item,) = self.items
        return item


def file_entries(base: Path, paths: Iterable[Path], *, full: bool = False) -> list[FileEntry]:
    """Hash files that lie below `base`; unchanged ones are known from the last time.

    Args:
        base: Folder that the names are relative to.
        paths: The files.
        full: Read all bytes again, also of files whose size, times and inode did not change.
    """
    known, fresh = _known_hashes(), {}
    entries = []
    for path in sorted(paths):
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        key = str(path.resolve())
        was = known.get(key) or [None]
        unchanged = isinstance(was, list) and was[:-1] == stamp
        sha256 = str(was[-1]) if unchanged and not full else sha256_of(path)
        if was != [*stamp, sha256]:
            fresh[key] = [*stamp, sha256]
        entries.append(FileEntry(name=path.relative_to(base).as_posix(), size=stat.st_size, sha256=sha256))
    _keep_hashes(fresh)
    return entries


def _hash_cache() -> Path:
    return state.root() / "hashes.json"


def _known_hashes() -> dict[str, Any]:
    known = state.read_cached_json(_hash_cache())
    return known if isinstance(known, dict) else {}


def _keep_hashes(fresh: dict[str, list[Any]]) -> None:
    """Add hashes to those that are known; files are read before, so that nobody waits for the lock meanwhile."""
    if not fresh:
        return
    with state.lock("hashes"):
        state.write_whole(_hash_cache(), json.dumps(_known_hashes() | fresh))


def sha256_of(path: Path) -> str:
    """Hash the bytes of one file.

    Raises:
        SourceError: It is no plain file.
    """
    limits.check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_paths(folder: Path, ignore: Iterable[str] = ()) -> list[Path]:
    """Return all files below a folder in order, but for those called as in `ignore`."""
    skipped = set(ignore)
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in skipped)


def file_hashes(folder: Path, ignore: Iterable[str] = ()) -> list[list[str]]:
    """Return name and sha256 of each file below a folder in order, but for those called as in `ignore`."""
    return [[path.relative_to(folder).as_posix(), sha256_of(path)] for path in tree_paths(folder, ignore)]


def tree_hash(folder: Path, ignore: Iterable[str] = ()) -> str:
    """Hash the names and bytes of all files below a folder, but for those called as in `ignore`."""
    return digest(file_hashes(folder, ignore))
