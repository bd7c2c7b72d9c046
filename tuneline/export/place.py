"""Lay an export into a folder of the user's: all of it or nothing, and never over something else."""

import shutil
from pathlib import Path

from tuneline import filesystem
from tuneline.errors import DeliveryError
from tuneline.export.write import CHECKSUMS_FILE
from tuneline.identity import sha256_of


def check_folder(to: Path) -> None:
    """Look whether an export may be laid there: a folder that is not there, is empty, or holds an earlier export.

    Raises:
        DeliveryError: Something else is there, or the earlier export was changed.
    """
    if not to.exists():
        return
    if not to.is_dir():
        raise DeliveryError(f"to: {to} is a file. Name a folder.")
    there = sorted(path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file())
    if not there:
        return
    if CHECKSUMS_FILE not in there:
        raise DeliveryError(f"to: {to} holds {there[0]} and is no export. Name another folder, or empty it.")
    known = _read_checksums(to / CHECKSUMS_FILE)
    if others := [name for name in there if name not in known and name != CHECKSUMS_FILE]:
        raise DeliveryError(f"to: {to} holds {others[0]}, which is no part of the export there. Move it elsewhere.")
    for name, sha256 in known.items():
        if (to / name).is_file() and sha256_of(to / name) != sha256:
            raise DeliveryError(
                f"to: {to / name} was changed since it was exported, and would be lost. Move it elsewhere, or name "
                "another folder."
            )


def copy_export(folder: Path, to: Path) -> None:
    """Copy an export; weights are hard links where the file system has them.

    Raises:
        DeliveryError: Something else is there, or the disk does not take it.
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
        raise DeliveryError(f"to: {to} cannot be written: {error}. The export itself is kept in {folder}.") from error


def _copy(source: str, target: str) -> None:
    (filesystem.link_or_copy if source.endswith(".safetensors") else shutil.copy2)(source, target)


def _read_checksums(path: Path) -> dict[str, str]:
    """Read names and hashes."""
    lines = [line.partition("  ") for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: sha256 for sha256, _, name in lines}
