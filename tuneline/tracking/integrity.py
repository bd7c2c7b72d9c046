"""Are the files of a registered version those that were registered?

The version's tag holds the hash of its content: kind, identity, names and hashes of all files. `checkpoint.json` beside
the files lists them, and counts only as far as it gives that hash. A file is read again where its size, time or inode
changed since it was hashed, so looking costs next to nothing; before a promotion all bytes are read.
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
"""Name and sha256 of each file, in order."""


def check_champion(name: str) -> None:
    """Check that the champion's files are there and unchanged, since a new model will be measured against it.

    Raises:
        TrackingError: They are not.
    """
    if present := registry.get_champion(name):
        verified_folder(present)


def check_stored(version: Version) -> None:
    """Read all bytes of a version where they are stored: a good copy on this machine says nothing of a remote store.

    Raises:
        TrackingError: A file is gone, was changed, or was put in.
    """
    with registry.stored_folder(version) as folder:
        _compare(version, folder, full=True)


def verified_folder(version: Version, *, full: bool = False) -> Path:
    """Return the directory of a version, as transformers loads it, once its bytes were held against its content hash.

    A version that another program registered has no content hash, and is taken as it is.

    Args:
        version: The version.
        full: Read all bytes, also of files whose size, times and inode did not change.

    Raises:
        TrackingError: A file is gone, was changed, or was put in.
    """
    folder = version.folder()
    _compare(version, folder, full=full)
    return folder


def _compare(version: Version, folder: Path, *, full: bool) -> None:
    if not version.content_hash:
        return
    about = _about(version, folder.parent / METADATA_FILE)
    paths = tree_paths(folder, NON_CONTENT_FILES)
    entries = {entry.name: entry.sha256 for entry in file_entries(folder, paths, full=full)}
    found = [[name := path.relative_to(folder).as_posix(), entries[name]] for path in paths]
    if compute_content_hash(about.get("kind"), about.get("identity"), found) == version.content_hash:
        return
    if not full:  # the cache of hashes may be wrong itself: the bytes decide
        _compare(version, folder, full=True)
        return
    told = _difference(version, about, found, folder)
    raise TrackingError(f"{_called(version)}: {told} Restore it from a backup, or {_instead(version)}.")


def _about(version: Version, path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = "is gone" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise TrackingError(
            f"{_called(version)}: {path} {why}, so its files cannot be told from others (content hash "
            f"{version.content_hash}). Restore it from a backup, or {_instead(version)}."
        ) from error
    return about if isinstance(about, dict) else {}


def _difference(version: Version, about: dict[str, Any], found: FileHashes, folder: Path) -> str:
    """Name the first file that differs, and say how many do."""
    known: FileHashes = about.get("files") or []
    if compute_content_hash(about.get("kind"), about.get("identity"), known) != version.content_hash:
        now = compute_content_hash(about.get("kind"), about.get("identity"), found)
        return (
            f"the files in {folder}, or what {METADATA_FILE} beside them says, have the content hash {now}, expected "
            f"{version.content_hash} as registered."
        )
    expected: dict[str, str] = dict(known)  # type: ignore[arg-type]
    there: dict[str, str] = dict(found)  # type: ignore[arg-type]
    told = [
        *(_changed(folder / name, sha, there.get(name)) for name, sha in known if there.get(name) != sha),
        *(f"{folder / name} is there and was not registered" for name in there if name not in expected),
    ]
    more = f"; {len(told) - 1} more differ" if len(told) > 1 else ""
    return f"{told[0]}{more}."


def _changed(path: Path, expected: str, found: str | None) -> str:
    if found is None:
        return f"{path} is gone (sha256 {expected} was registered)"
    return f"{path} has the sha256 {found}, expected {expected} as registered"


def _called(version: Version) -> str:
    return f"{version.name} version {version.version} ({', '.join(version.aliases) or 'no alias'})"


def _instead(version: Version) -> str:
    if "champion" in version.aliases:
        return f"take the alias away: `tuneline rollback {version.name}`"
    return f"take another version: `tuneline models {version.name}` lists them"
