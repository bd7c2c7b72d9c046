"""Copy an export into a user's folder atomically, without overwriting other files."""

import shutil
from pathlib import Path

from tuneline import filesystem
from tuneline.errors import DeliveryError
from tuneline.export.write import CHECKSUMS_FILE
from tuneline.identity import sha256_of


def check_folder(to: Path) -> None:
    """Check that an export can be copied there: the folder is missing, empty, or contains an earlier export.

    Raises:
        DeliveryError: The folder contains other files, or the earlier export was modified.
    """
    if not to.exists():
        return
    if not to.is_dir():
        raise DeliveryError(f"to: {to} is a file. Give a folder.")
    files = sorted(path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file())
    if not files:
        return
    if CHECKSUMS_FILE not in files:
        raise DeliveryError(f"to: {to} contains {files[0]} and is not an export. Give another folder, or empty it.")
    checksums = _read_checksums(to / CHECKSUMS_FILE)
    if others := [name for name in files if name not in checksums and name != CHECKSUMS_FILE]:
        raise DeliveryError(
            f"to: {to} contains {others[0]}, which is not part of the export there. Move it to another folder."
        )
    for name, sha256 in checksums.items():
        if (to / name).is_file() and sha256_of(to / name) != sha256:
            raise DeliveryError(
                f"to: {to / name} was modified after its export and would be overwritten. Move it to another folder, "
                "or give another folder."
            )


def copy_export(folder: Path, to: Path) -> None:
    """Copy an export; weights are hard links if the file system supports them.

    Raises:
        DeliveryError: The folder contains other files, or cannot be written.
    """
    check_folder(to)
    scratch = to.with_name(f".{to.name}.partial")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(folder, scratch, copy_function=_copy)
        shutil.rmtree(to, ignore_errors=True)
        scratch.rename(to)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise DeliveryError(f"to: {to} cannot be written: {error}. The export remains in {folder}.") from error


def _copy(source: str, target: str) -> None:
    (filesystem.link_or_copy if source.endswith(".safetensors") else shutil.copy2)(source, target)


def _read_checksums(path: Path) -> dict[str, str]:
    """Read the checksum file: name -> sha256."""
    lines = [line.partition("  ") for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: sha256 for sha256, _, name in lines}
