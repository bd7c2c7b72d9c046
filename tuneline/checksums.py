"""Checksums of stored artifacts: written with the files, compared with them on reading.

`checksums.json` lists size and sha256 of every file, and the content hash of the artifact. A file is hashed again only
if its size, times or inode changed; `full` hashes all files. Pages that are written later (HTML or Markdown in the
folder of the artifact) are not listed.
"""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from tuneline import filesystem
from tuneline.errors import ArtifactError
from tuneline.identity import FileEntry, file_entries, tree_paths

FILE = "checksums.json"

logger = logging.getLogger(__name__)


class Checksums(BaseModel):
    """The files of an artifact and its content hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    content_hash: str
    step: str = ""
    """Step that produced the artifact."""

    files: list[FileEntry]

    def below(self, folder: str, ignore: Iterable[str] = ()) -> list[list[str]]:
        """Return name and sha256 of each file below a folder in order, as `identity.file_hashes` does."""
        paths = {PurePosixPath(entry.name): entry.sha256 for entry in self.files}
        inside = [path for path in sorted(paths) if path.parts[0] == folder and path.name not in set(ignore)]
        return [[path.relative_to(folder).as_posix(), paths[path]] for path in inside]


def write(folder: Path, content_hash: str, step: str = "") -> None:
    """Write `checksums.json` for all files below a folder."""
    sums = Checksums(content_hash=content_hash, step=step, files=_entries(folder))
    filesystem.write_atomic(folder / FILE, sums.model_dump_json(indent=1))


def _entries(folder: Path) -> list[FileEntry]:
    return file_entries(folder, tree_paths(folder, [FILE]))


def read(folder: Path) -> Checksums | None:
    """Return the checksums of an artifact; None if it was stored without.

    Raises:
        ArtifactError: The folder is missing, or its checksums cannot be read.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is missing.")
    path = folder / FILE
    return parse(path.read_bytes(), str(path)) if path.exists() else None


def parse(text: str | bytes, location: str) -> Checksums:
    """Parse checksums.

    Raises:
        ArtifactError: The text is not valid.
    """
    try:
        return Checksums.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactError(f"{location} is damaged: {error.errors()[0]['msg']}.") from error


def write_for_copy(unfinished: Path, target: Path) -> None:
    """Write the checksums of a finished copy next to the folder that it is about to become."""
    filesystem.write_atomic(
        _copy_checksums(target), Checksums(content_hash="", files=_entries(unfinished)).model_dump_json(indent=1)
    )


def is_usable_copy(target: Path) -> bool:
    """Return whether a reproducible copy is present and unchanged; a damaged one is removed with a warning."""
    if not target.is_dir():
        return False
    path = _copy_checksums(target)
    try:
        sums = parse(path.read_bytes(), str(path)) if path.exists() else None
        differences = _all_differences(target, sums, full=False) if sums else []
    except ArtifactError as error:
        differences = [str(error)]
    if differences:
        logger.warning("%s The folder is a copy and is created again.", differences[0])
        shutil.rmtree(target)
        path.unlink(missing_ok=True)
    return not differences


def _copy_checksums(target: Path) -> Path:
    return target.with_name(f"{target.name}.{FILE}")


def check(folder: Path, *, full: bool = False) -> Checksums | None:
    """Compare the files of an artifact with its checksums.

    Args:
        folder: The artifact.
        full: Hash all files, including those whose size, times and inode did not change.

    Returns:
        The checksums; None if the artifact was stored without.

    Raises:
        ArtifactError: A file is missing, changed, or was added.
    """
    sums = read(folder)
    if sums is None:
        return None
    if differences := _all_differences(folder, sums, full=full):
        more = f" {len(differences) - 1} more files differ." if len(differences) > 1 else ""
        raise ArtifactError(f"{differences[0]}{more}")
    return sums


def _all_differences(folder: Path, sums: Checksums, *, full: bool) -> list[str]:
    differences = _differences(folder, sums, full=full)
    if differences and not full:  # the cache of hashes may be wrong
        differences = _differences(folder, sums, full=True)
    return differences


def _differences(folder: Path, sums: Checksums, *, full: bool) -> list[str]:
    present = {path.relative_to(folder).as_posix(): path for path in tree_paths(folder, [FILE])}
    listed = {entry.name: entry for entry in sums.files}
    entries = file_entries(folder, [path for name, path in present.items() if name in listed], full=full)
    return [
        *(f"{folder / name} is missing." for name in listed if name not in present),
        *(
            f"{folder / entry.name} has the sha256 {entry.sha256} ({entry.size} bytes), expected "
            f"{listed[entry.name].sha256} ({listed[entry.name].size} bytes) as it was stored."
            for entry in entries
            if entry != listed[entry.name]
        ),
        *(f"{folder / name} was added after it was stored." for name in present if "/" in name and name not in listed),
    ]


def recovery_advice(step: str) -> str:
    """Return advice how to replace a damaged artifact.

    Args:
        step: Step that produced it, or an empty string.
    """
    if not step:
        return "Restore it from a backup, or compute it again: `tuneline run RECIPE --no-cache`."
    return (
        f"It is an output of step {step}. Restore it from a backup, or compute it again: `tuneline run RECIPE "
        f"--recompute {step}`."
    )
