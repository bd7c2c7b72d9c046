"""The state root: the one folder that holds all that Tuneline keeps on a machine.

It is `TUNELINE_HOME`, or the nearest `.tuneline` at or above the working directory, or `.tuneline` in the
working directory. Inside: `models/` (converted base models), `work/` (scratch, moved into artifacts), `scores/`,
`locks/`, `runs/` (which process works on what, see `tuneline.owner`), `artifacts/` (embedded ZenML artifact store with
MLflow's database), `ledger.jsonl`, `hashes.json`.
"""

import os
from pathlib import Path

from filelock import FileLock


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
