"""Integrity of registered versions: their files are compared with the registered content hash.

A tag of the version has the hash of its content: kind, identity, names and hashes of all files. `checkpoint.json` next
to the files lists them and is trusted only if it gives that hash. A file is hashed again only if its size, times or
inode changed, so a check is cheap; before a promotion all files are hashed.
"""

import json
from pathlib import Path
from typing import Any

from tuneline.errors import TrackingError
from tuneline.identity import file_entries, tree_paths
from tuneline.model.checkpoint import METADATA_FILE, NON_CONTENT_FILES, compute_content_hash
from tuneline.tracking import registry
from tuneline.tracking.registry import Version

FileHashes = list[list[str]]
"""Name and sha256 of each file, sorted."""


def check_champion(name: str) -> None:
    """Check that the files of the champion are present and unchanged, since a new model will be compared with it.

    Raises:
        TrackingError: A file is missing or changed.
    """
    if champion := registry.get_champion(name):
        verified_folder(champion)


def check_stored(version: Version) -> None:
    """Hash all files of a version in its store, because a good local copy proves nothing about a remote store.

    Raises:
        TrackingError: A file is missing, changed, or was added.
    """
    with registry.stored_folder(version) as folder:
        _compare(version, folder, full=True)


def verified_folder(version: Version, *, full: bool = False) -> Path:
    """Return the directory of a version, as transformers loads it, after comparing it with its content hash.

    A version registered by another program has no content hash and is not checked.

    Args:
        version: The version.
        full: Hash all files, including those whose size, times and inode did not change.

    Raises:
        TrackingError: A file is missing, changed, or was added.
    """
    folder = version.folder()
    _compare(version, folder, full=full)
    return folder


def _compare(version: Version, folder: Path, *, full: bool) -> None:
    if not version.content_hash:
        return
    record = _record(version, folder.parent / METADATA_FILE)
    paths = tree_paths(folder, NON_CONTENT_FILES)
    entries = {entry.name: entry.sha256 for entry in file_entries(folder, paths, full=full)}
    files = [[name := path.relative_to(folder).as_posix(), entries[name]] for path in paths]
    if compute_content_hash(record.get("kind"), record.get("identity"), files) == version.content_hash:
        return
    if not full:  # the cache of hashes may be wrong
        _compare(version, folder, full=True)
        return
    difference = _difference(version, record, files, folder)
    raise TrackingError(f"{_label(version)}: {difference} Restore it from a backup, or {_alternative(version)}.")


def _record(version: Version, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise TrackingError(
            f"{_label(version)}: {path} {why}, so its files cannot be verified (content hash "
            f"{version.content_hash}). Restore it from a backup, or {_alternative(version)}."
        ) from error
    return record if isinstance(record, dict) else {}


def _difference(version: Version, record: dict[str, Any], files: FileHashes, folder: Path) -> str:
    """Describe the first file that differs, and how many differ."""
    registered: FileHashes = record.get("files") or []
    if compute_content_hash(record.get("kind"), record.get("identity"), registered) != version.content_hash:
        now = compute_content_hash(record.get("kind"), record.get("identity"), files)
        return (
            f"the files in {folder}, or {METADATA_FILE} next to them, have the content hash {now}, expected "
            f"{version.content_hash} as registered."
        )
    expected: dict[str, str] = dict(registered)  # type: ignore[arg-type]
    present: dict[str, str] = dict(files)  # type: ignore[arg-type]
    differences = [
        *(
            _describe_change(folder / name, sha, present.get(name))
            for name, sha in registered
            if present.get(name) != sha
        ),
        *(f"{folder / name} was not registered" for name in present if name not in expected),
    ]
    more = f"; {len(differences) - 1} more differ" if len(differences) > 1 else ""
    return f"{differences[0]}{more}."


def _describe_change(path: Path, expected: str, actual: str | None) -> str:
    if actual is None:
        return f"{path} is missing (sha256 {expected} was registered)"
    return f"{path} has the sha256 {actual}, expected {expected} as registered"


def _label(version: Version) -> str:
    return f"{version.name} version {version.version} ({', '.join(version.aliases) or 'no alias'})"


def _alternative(version: Version) -> str:
    if "champion" in version.aliases:
        return f"remove the alias: `tuneline rollback {version.name}`"
    return f"use another version: `tuneline models {version.name}` lists them"
