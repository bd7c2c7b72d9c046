"""The state root: the one folder that holds all that Tuneline keeps on a machine.

It is `TUNELINE_HOME`, or the nearest `.tuneline` at or above the working directory, or `.tuneline` in the
working directory. Inside: `models/` (converted base models), `work/` (scratch, moved into artifacts), `scores/`,
`downloads/` (copies of remote artifacts), `locks/`, `runs/` (which process works on what, see `tuneline.owner`),
`artifacts/` (embedded ZenML artifact store with MLflow's database), `ledger.jsonl`, `hashes.json`.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from filelock import FileLock

logger = logging.getLogger(__name__)


def root() -> Path:
    """Return the state root; it need not exist yet."""
    if home := os.environ.get("TUNELINE_HOME"):
        return Path(home).expanduser().resolve()
    here = Path.cwd()
    return next((up / ".tuneline" for up in (here, *here.parents) if (up / ".tuneline").is_dir()), here / ".tuneline")


def folder(name: str) -> Path:
    """Return the folder `name` below the state root, created where it is missing."""
    path = root() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def lock(name: str, timeout_seconds: float = 600) -> FileLock:
    """Return a lock that every process on this state root shares; use it with `with`."""
    return FileLock(folder("locks") / f"{name}.lock", timeout=timeout_seconds)


def read_cached_json(path: Path) -> Any:
    """Return what a cache file holds; None where it is missing, or cut off (by a crash or a full disk), with a warning.

    Only for files that can be computed again.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s is not valid JSON (%s). It is only a cache and is computed again.", path, error)
        return None


def write_whole(path: Path, text: str) -> None:
    """Write a text file completely or not at all; call it while holding the lock of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
