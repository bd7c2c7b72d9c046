"""The state root: the folder with everything that Tuneline stores on a machine.

It is `TUNELINE_HOME`, or the nearest `.tuneline` at or above the working directory, or `.tuneline` in the
working directory. Inside: `models/` (converted base models), `work/` (scratch, moved into artifacts), `scores/`,
`downloads/` (copies of remote artifacts), `locks/`, `runs/` (what each process has started, see `tuneline.owner`),
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
    """Return the state root, which may not exist yet."""
    if home := os.environ.get("TUNELINE_HOME"):
        return Path(home).expanduser().resolve()
    current = Path.cwd()
    candidates = [folder / ".tuneline" for folder in (current, *current.parents)]
    return next((path for path in candidates if path.is_dir()), candidates[0])


def folder(name: str) -> Path:
    """Return the folder `name` below the state root; it is created if missing."""
    path = root() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def lock(name: str, timeout_seconds: float = 600) -> FileLock:
    """Return a lock shared by all processes of this state root, for use with `with`."""
    return FileLock(folder("locks") / f"{name}.lock", timeout=timeout_seconds)


def read_cached_json(path: Path) -> Any:
    """Return the content of a cache file; None if it is missing or, with a warning, if it was truncated.

    Only for files that can be computed again.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s is not valid JSON (%s). It is a cache and is computed again.", path, error)
        return None
