"""Fill the paper's tables: a pipeline run a cell, each that computes in a process of its own.

ZenML's cache is the memory: the same cell again is read from it, an interrupted one goes on with its training state.
"""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tuneline.config.experiments.paper_tables import Cell
from tuneline.errors import SourceError, StoppedError, TunelineError
from tuneline.tracking.experiments.paper_cell import CellMeasurement, CellResult

STARTED_SUFFIX, ERROR_SUFFIX = ".begun", ".reason"
"""Beside the file for a cell's figures: its run was begun; the message of an error of the user's."""

Launcher = Callable[[Path, Path], int]
"""Gets a list of jobs and a file for the log; returns the exit code."""

OnResult = Callable[[list[CellResult], int], None]
"""Hears all cells as they are now, and which of them has just ended."""


def check(cells: list[Cell]) -> None:
    """Look at rows, model and tracker of every cell; fetches and converts the model, so that no cell pays for it.

    Raises:
        TunelineError: A run would be refused; its cell is named.
    """
    from tuneline.runner import preflight

    for cell in cells:
        try:
            preflight.check_content(cell.config.recipe)
        except TunelineError as error:
            hint = (
                " Where the hub is out of reach, give files: --data FOLDER." if isinstance(error, SourceError) else ""
            )
            raise type(error)(f"{cell.task}, {cell.method}: {error}{hint}") from error


def run(cells: list[Cell], logs: Path, told: OnResult, launch: Launcher | None = None) -> list[CellResult]:
    """Run the cells one after the other.

    Args:
        cells: Of `tuneline.config.experiments.paper_tables`.
        logs: Folder for what the runs say.
        told: Called with every cell that ends.
        launch: Starts a process that measures; left out, a fresh interpreter.

    Raises:
        StoppedError: A signal asked to stop; what is done stays done.
    """
    launch = launch or start_process
    logs.mkdir(parents=True, exist_ok=True)
    results = [_waiting(cell) for cell in cells]
    with tempfile.TemporaryDirectory(prefix="tuneline-tables-") as scratch:
        places = [Path(scratch) / f"{number}.json" for number in range(len(cells))]
        while open_ := [number for number, result in enumerate(results) if result.status == "waiting"]:
            jobs, log = Path(scratch) / "jobs", logs / f"{cells[open_[0]].name}.log"
            jobs.write_text(json.dumps([[str(cells[number].config.path), str(places[number])] for number in open_]))
            code = launch(jobs, log)
            ended = [number for number in open_ if places[number].is_file()]
            for number in ended:
                measured = CellMeasurement.model_validate_json(places[number].read_text(encoding="utf-8"))
                results[number] = results[number].model_copy(update={"status": "done", "measured": measured})
                told(results, number)
            rest = [number for number in open_ if number not in ended]
            if rest and (not ended or places[rest[0]].with_suffix(STARTED_SUFFIX).is_file()):
                reason = failure_reason(places[rest[0]], log, code)
                results[rest[0]] = results[rest[0]].model_copy(update={"status": "failed", "reason": reason})
                told(results, rest[0])
    return results


def _waiting(cell: Cell) -> CellResult:
    recipe = cell.config.recipe.model_dump(mode="json")
    return CellResult(table=cell.table, task=cell.task, method=cell.method, status="waiting", recipe=recipe)


def failure_reason(place: Path, log: Path, code: int) -> str:
    """Say why a process left no figures: its own words, its last line, or the signal that ended it."""
    said = place.with_suffix(ERROR_SUFFIX)
    if said.is_file():
        return said.read_text(encoding="utf-8").strip()
    if code < 0:
        name = signal.Signals(-code).name
        beside = ", as a system does that runs out of memory" if name == "SIGKILL" else ""
        return f"The process was ended by {name}{beside}."
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'The process said nothing.'} (exit code {code}; {log.name} has the whole)"


def start_process(jobs: Path, log: Path) -> int:
    """Measure in a fresh interpreter; a signal to this process is handed on, and the child's state is saved first.

    Raises:
        StoppedError: There was such a signal.
    """
    command = [sys.executable, "-P", "-m", "tuneline.runner.measure_run", str(jobs)]
    with log.open("w", encoding="utf-8") as output, _handed_on() as (asked, children):
        # A session of its own, so that Ctrl-C reaches it once, through this process.
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        children.append(child)
        code = child.wait()
    if asked:
        raise StoppedError(
            f"Stopped by {asked[0]}. What is done is kept; give the same command again to go on.", by=asked[0]
        )
    return code


@contextmanager
def _handed_on() -> Iterator[tuple[list[str], list["subprocess.Popen[bytes]"]]]:
    """Hand SIGINT and SIGTERM on to children; yield the names of those that came, and the list of the children."""
    asked: list[str] = []
    children: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        asked.append(signal.Signals(number).name)
        for child in children:
            child.send_signal(number)

    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield asked, children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
