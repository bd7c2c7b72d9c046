"""Jobs: one measurement in a fresh process, so that neither memory nor caches of another reach it.

    python -m benchmarks.peers.<job> '{"scratch": "...", "result": "...", ...}'

Standard library alone: jobs also run under the interpreters of peers, which have none of our packages.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LLAMAFACTORY_VERBOSITY": "WARN",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}
"""One thread, no network and no log lines, for everyone alike."""

Result = dict[str, Any]
Made = TypeVar("Made")


def start(name: str, arguments: Result, scratch: Path, python: str = sys.executable) -> "subprocess.Popen[bytes]":
    """Start a job; `finish` waits for it.

    Args:
        name: Module in `benchmarks.peers`.
        arguments: What the job is told; `scratch` and `result` are added.
        scratch: Folder for all that the job writes.
        python: Interpreter to run it with.
    """
    told = {**arguments, "scratch": str(scratch), "result": str(scratch / "result.json")}
    caches = {"TUNELINE_HOME": str(scratch / "home"), "HF_DATASETS_CACHE": str(scratch / "datasets")}
    return subprocess.Popen(
        [python, "-m", f"benchmarks.peers.{name}", json.dumps(told)],
        cwd=ROOT,
        env={**os.environ, **QUIET, **caches},
        stdout=subprocess.DEVNULL,
        stderr=(scratch / "stderr.txt").open("wb"),
    )


def finish(job: "subprocess.Popen[bytes]", name: str, scratch: Path) -> Result:
    """Wait for a job and return what it found.

    Raises:
        RuntimeError: It failed.
    """
    if job.wait():
        said = (scratch / "stderr.txt").read_text(errors="replace")
        raise RuntimeError(f"The job {name} failed with code {job.returncode}. Its last words:\n{said[-3000:]}")
    found: Result = json.loads((scratch / "result.json").read_text())
    return found


def run(name: str, arguments: Result, python: str = sys.executable) -> Result:
    """Run a job in an empty folder and return what it found."""
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        return finish(start(name, arguments, Path(folder), python), name, Path(folder))


def job(work: Callable[[Result], Result]) -> None:
    """Be a job: read the arguments, work, write the result."""
    arguments = json.loads(sys.argv[1])
    Path(arguments["result"]).write_text(json.dumps(work(arguments)))


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its finished children, user and system."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


class Clock:
    """CPU and wall seconds of named pieces of work."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    def timed(self, name: str, work: Callable[[], Made]) -> Made:
        """Do a piece of work; pieces of one name add up."""
        cpu, wall = cpu_seconds(), time.perf_counter()
        made = work()
        self.cpu[name] = self.cpu.get(name, 0.0) + cpu_seconds() - cpu
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        return made
