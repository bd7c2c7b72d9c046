"""Jobs: each measurement runs in a new process, so that memory and caches of other measurements do not affect it.

    python -m benchmarks.peers.<job> '{"scratch": "...", "result": "...", ...}'

Uses the standard library only: jobs also run in the Python environments of peers, without our packages.
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
"""One thread, no network and no log lines for all jobs."""

Result = dict[str, Any]
ResultType = TypeVar("ResultType")


def start(name: str, arguments: Result, scratch: Path, python: str = sys.executable) -> "subprocess.Popen[bytes]":
    """Start a job; `finish` waits for it.

    Args:
        name: Module in `benchmarks.peers`.
        arguments: Arguments of the job; `scratch` and `result` are added.
        scratch: Folder for all files that the job writes.
        python: Interpreter to run it with.
    """
    job_arguments = {**arguments, "scratch": str(scratch), "result": str(scratch / "result.json")}
    caches = {"TUNELINE_HOME": str(scratch / "home"), "HF_DATASETS_CACHE": str(scratch / "datasets")}
    return subprocess.Popen(
        [python, "-m", f"benchmarks.peers.{name}", json.dumps(job_arguments)],
        cwd=ROOT,
        env={**os.environ, **QUIET, **caches},
        stdout=subprocess.DEVNULL,
        stderr=(scratch / "stderr.txt").open("wb"),
    )


def finish(job: "subprocess.Popen[bytes]", name: str, scratch: Path) -> Result:
    """Wait for a job and return its result.

    Raises:
        RuntimeError: The job failed.
    """
    if job.wait():
        log = (scratch / "stderr.txt").read_text(errors="replace")
        raise RuntimeError(f"The job {name} failed with exit code {job.returncode}. End of its stderr:\n{log[-3000:]}")
    result: Result = json.loads((scratch / "result.json").read_text())
    return result


def run(name: str, arguments: Result, python: str = sys.executable) -> Result:
    """Run a job in an empty folder and return its result."""
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        return finish(start(name, arguments, Path(folder), python), name, Path(folder))


def run_as_job(work: Callable[[Result], Result]) -> None:
    """Read the arguments of the command line, run the job, and write its result."""
    arguments = json.loads(sys.argv[1])
    Path(arguments["result"]).write_text(json.dumps(work(arguments)))


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its finished children, user and system."""
    usages = [resource.getrusage(target) for target in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Clock:
    """CPU and wall seconds of named tasks."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    def measure(self, name: str, work: Callable[[], ResultType]) -> ResultType:
        """Measure a task; times of the same name are added."""
        cpu, wall = cpu_seconds(), time.perf_counter()
        result = work()
        self.cpu[name] = self.cpu.get(name, 0.0) + cpu_seconds() - cpu
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        return result
