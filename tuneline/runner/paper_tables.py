"""Runs the cells of the paper tables: one pipeline run per cell, each in a new process unless it is cached.

A finished cell is read from ZenML's cache; an interrupted one resumes from its training state.
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
"""Suffixes of files next to the measurements of a cell: its run has started; the message of its error."""

Launcher = Callable[[Path, Path], int]
"""Starts a process for a file of jobs and a log file; returns the exit code."""

OnResult = Callable[[list[CellResult], int], None]
"""Called with the results of all cells, and the index of the cell that has just finished."""


def check(cells: list[Cell]) -> None:
    """Check the rows, model and tracker of every cell, and download and convert the model before the measurements.

    Raises:
        TunelineError: A cell cannot run; the message names it.
    """
    from tuneline.runner import preflight

    for cell in cells:
        try:
            preflight.check_content(cell.config.recipe)
        except TunelineError as error:
            hint = (
                " If the Hub cannot be reached, use local files: --data FOLDER."
                if isinstance(error, SourceError)
                else ""
            )
            raise type(error)(f"{cell.task}, {cell.method}: {error}{hint}") from error


def run(cells: list[Cell], logs: Path, on_result: OnResult, launch: Launcher | None = None) -> list[CellResult]:
    """Run the cells one after the other.

    Args:
        cells: Cells of `tuneline.config.experiments.paper_tables`.
        logs: Folder for the logs of the runs.
        on_result: Called after each cell.
        launch: Starts a measuring process; default: a new interpreter.

    Raises:
        StoppedError: A signal stopped the command; finished cells are kept.
    """
    launch = launch or start_process
    logs.mkdir(parents=True, exist_ok=True)
    results = [_unfinished(cell) for cell in cells]
    with tempfile.TemporaryDirectory(prefix="tuneline-tables-") as scratch:
        outputs = [Path(scratch) / f"{number}.json" for number in range(len(cells))]
        while open_ := [number for number, result in enumerate(results) if result.status == "waiting"]:
            jobs, log = Path(scratch) / "jobs", logs / f"{cells[open_[0]].name}.log"
            jobs.write_text(json.dumps([[str(cells[number].config.path), str(outputs[number])] for number in open_]))
            code = launch(jobs, log)
            ended = [number for number in open_ if outputs[number].is_file()]
            for number in ended:
                measured = CellMeasurement.model_validate_json(outputs[number].read_text(encoding="utf-8"))
                results[number] = results[number].model_copy(update={"status": "done", "measured": measured})
                on_result(results, number)
            rest = [number for number in open_ if number not in ended]
            if rest and (not ended or outputs[rest[0]].with_suffix(STARTED_SUFFIX).is_file()):
                reason = failure_reason(outputs[rest[0]], log, code)
                results[rest[0]] = results[rest[0]].model_copy(update={"status": "failed", "reason": reason})
                on_result(results, rest[0])
    return results


def _unfinished(cell: Cell) -> CellResult:
    recipe = cell.config.recipe.model_dump(mode="json")
    return CellResult(table=cell.table, task=cell.task, method=cell.method, status="waiting", recipe=recipe)


def failure_reason(output: Path, log: Path, code: int) -> str:
    """Return why a process wrote no measurements: its error, its last output line, or the signal that ended it."""
    message = output.with_suffix(ERROR_SUFFIX)
    if message.is_file():
        return message.read_text(encoding="utf-8").strip()
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as when the system runs out of memory" if name == "SIGKILL" else ""
        return f"The process was ended by {name}{hint}."
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'The process said nothing.'} (exit code {code}; full log: {log.name})"


def start_process(jobs: Path, log: Path) -> int:
    """Measure in a new interpreter; signals are forwarded to it, so that it saves its state.

    Raises:
        StoppedError: A signal stopped the measurement.
    """
    command = [sys.executable, "-P", "-m", "tuneline.runner.measure_run", str(jobs)]
    with log.open("w", encoding="utf-8") as output, _forward_signals() as (received, children):
        # A new session, so that Ctrl-C reaches it once, through this process.
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        children.append(child)
        code = child.wait()
    if received:
        raise StoppedError(
            f"Stopped by {received[0]}. Finished cells are kept; repeat the command to continue.", by=received[0]
        )
    return code


@contextmanager
def _forward_signals() -> Iterator[tuple[list[str], list["subprocess.Popen[bytes]"]]]:
    """Forward SIGINT and SIGTERM to child processes; yield the names of received signals, and the list of children."""
    received: list[str] = []
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        for child in children:
            child.send_signal(number)

    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received, children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
