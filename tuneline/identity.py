"""Identity by content: hashes of values, files and folders, and the manifests that contain them.

The hash of a file is cached with its size, times and inode, and computed again only if one of them changed. Path, time
and user are never part of an identity.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tuneline import filesystem, limits, state


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of a value: sorted keys, no spaces, UTF-8 unescaped."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """Return the sha256 of the canonical JSON text of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class FileEntry(BaseModel):
    """A file, identified by its hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Path relative to the location of the manifest item."""

    size: int
    sha256: str


class Located(BaseModel):
    """A named set of files: a dataset, an exam or a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    location: str
    """Folder of the files on this machine; not part of the identity."""

    source: str
    """Origin: a path, a wheel, or a Hub name with its revision; not part of the identity."""

    licence: str = "unknown"
    files: list[FileEntry]

    def paths(self) -> list[Path]:
        """Return the paths of the files."""
        return [Path(self.location) / file.name for file in self.files]

    def content_hash(self) -> str:
        """Return the hash of the names and contents of the files."""
        return digest([[file.name, file.sha256] for file in sorted(self.files, key=lambda file: file.name)])


class Manifest(BaseModel):
    """The files that a run starts from, as the step `resolve` found them; nothing is copied."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    items: list[Located]

    def content_hash(self) -> str:
        """Return the hash of names and contents; equal for the same content in another location."""
        named = [
            [item.name if self.kind in ("sources", "benchmarks") else "", item.content_hash()] for item in self.items
        ]
        return digest([self.kind, named])

    def item(self, name: str) -> Located:
        """Return the item `name`, which must exist."""
        return next(item for item in self.items if item.name == name)

    def only(self) -> Located:
        """Return the item of a manifest with one item."""
        (item,) = self.items
        return item


def file_entries(base: Path, paths: Iterable[Path], *, full: bool = False) -> list[FileEntry]:
    """Hash files below `base`; the hashes of unchanged files come from a cache.

    Args:
        base: Folder that the names are relative to.
        paths: The files.
        full: Hash all files, including those whose size, times and inode did not change.
    """
    cached, updates = _cached_hashes(), {}
    entries = []
    for path in sorted(paths):
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        key = str(path.resolve())
        entry = cached.get(key) or [None]
        unchanged = isinstance(entry, list) and entry[:-1] == stamp
        sha256 = str(entry[-1]) if unchanged and not full else sha256_of(path)
        if entry != [*stamp, sha256]:
            updates[key] = [*stamp, sha256]
        entries.append(FileEntry(name=path.relative_to(base).as_posix(), size=stat.st_size, sha256=sha256))
    _save_hashes(updates)
    return entries


def _hash_cache() -> Path:
    return state.root() / "hashes.json"


def _cached_hashes() -> dict[str, Any]:
    cached = state.read_cached_json(_hash_cache())
    return cached if isinstance(cached, dict) else {}


def _save_hashes(updates: dict[str, list[Any]]) -> None:
    """Add hashes to the cache; the files are hashed before, so that the lock is held briefly."""
    if not updates:
        return
    with state.lock("hashes"):
        filesystem.write_atomic(_hash_cache(), json.dumps(_cached_hashes() | updates))


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file.

    Raises:
        SourceError: The path is not a regular file.
    """
    limits.check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_paths(folder: Path, ignore: Iterable[str] = ()) -> list[Path]:
    """Return all files below a folder, sorted, except those with a name in `ignore`."""
    skipped = set(ignore)
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in skipped)


def file_hashes(folder: Path, ignore: Iterable[str] = ()) -> list[list[str]]:
    """Return name and sha256 of each file below a folder, sorted, except those with a name in `ignore`."""
    return [[path.relative_to(folder).as_posix(), sha256_of(path)] for path in tree_paths(folder, ignore)]


def tree_hash(folder: Path, ignore: Iterable[str] = ()) -> str:
    """Return the hash of names and contents of all files below a folder, except those with a name in `ignore`."""
    return digest(file_hashes(folder, ignore))
