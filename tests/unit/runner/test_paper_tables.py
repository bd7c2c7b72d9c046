"""Cells of the paper's tables are run in processes; failures are reported, and finished cells are kept."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.tracking.experiments.test_paper_tables import make_measurement
from tuneline.config.experiments.paper_tables import Cell
from tuneline.config.run_config import RunConfig
from tuneline.errors import StoppedError
from tuneline.runner import paper_tables as running


class Recipe:
    """Replaces a recipe, whose content does not matter here."""

    def model_dump(self, mode):
        return {}


def cells(tmp_path, *methods):
    return [
        Cell("efficiency", "pubmed", method, RunConfig(tmp_path / f"{method}.yaml", "pretrain_pipeline", Recipe(), {}))
        for method in methods
    ]


class Processes:
    """Replaces the processes: one entry per process with its behavior per method, and its exit code."""

    def __init__(self, *behaviours):
        self.behaviours = list(behaviours)
        self.jobs = []

    def __call__(self, jobs, log):
        pairs = [(Path(config).stem, Path(result)) for config, result in json.loads(jobs.read_text())]
        self.jobs.append([name for name, _ in pairs])
        log.write_text("starting\nRuntimeError: out of memory\n")
        behavior, code = self.behaviours.pop(0)
        for name, result in pairs:
            if name not in behavior:
                break
            result.with_suffix(running.STARTED_SUFFIX).touch()
            if behavior[name] == "done":
                result.write_text(make_measurement().model_dump_json())
            elif behavior[name]:
                result.with_suffix(running.ERROR_SUFFIX).write_text(behavior[name])
                break
            else:
                break
        return code


def run(tmp_path, processes, *methods):
    reported = []
    results = running.run(
        cells(tmp_path, *methods),
        tmp_path / "logs",
        lambda results_so_far, number: reported.append(results_so_far[number]),
        processes,
    )
    assert [result.method for result in reported] == list(methods), "each cell is reported once, when it ends"
    return results


def test_a_process_ends_after_a_computed_cell_and_the_next_one_continues(tmp_path):
    processes = Processes(({"full": "done", "lora": "done"}, 0), ({"qlora": "done"}, 0))

    results = run(tmp_path, processes, "full", "lora", "qlora")

    assert processes.jobs == [["full", "lora", "qlora"], ["qlora"]]
    assert {result.status for result in results} == {"done"}


def test_a_failed_cell_is_reported_and_the_others_are_run(tmp_path):
    processes = Processes(
        ({"full": "done", "lora": "Set method.r lower."}, 2), ({"qlora": ""}, 1), ({"freeze": "done"}, 0)
    )

    results = run(tmp_path, processes, "full", "lora", "qlora", "freeze")

    assert [result.status for result in results] == ["done", "failed", "failed", "done"]
    assert results[1].reason == "Set method.r lower."
    assert results[2].reason == "RuntimeError: out of memory (exit code 1; full log: pubmed-qlora.log)"


def test_a_killed_process_is_reported_with_its_signal(tmp_path):
    (only,) = run(tmp_path, Processes(({"full": ""}, -signal.SIGKILL)), "full")

    assert only.reason == "The process was ended by SIGKILL, as when the system runs out of memory."


def test_a_process_that_crashes_after_its_cell_affects_no_other_cell(tmp_path):
    results = run(tmp_path, Processes(({"full": "done"}, -signal.SIGSEGV), ({"lora": "done"}, 0)), "full", "lora")

    assert [result.status for result in results] == ["done", "done"]


def test_processes_that_start_no_cell_are_not_restarted_forever(tmp_path):
    results = run(tmp_path, Processes(({}, 1), ({}, 1)), "full", "lora")

    assert [result.status for result in results] == ["failed", "failed"]


def test_a_real_process_reports_the_message_of_an_error(tmp_path):
    """Run the real module without a store; the file does not exist."""
    (only,) = running.run(cells(tmp_path, "full"), tmp_path / "logs", lambda *_: None)

    assert only.status == "failed"
    assert str(tmp_path / "full.yaml") in only.reason
    assert "Traceback" not in only.reason


def test_a_signal_is_forwarded_and_the_process_is_awaited(tmp_path, monkeypatch):
    """The command ends only after the child has handled the signal."""
    child = tmp_path / "child.py"
    child.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], 'w').write('saved'), sys.exit(0)))\n"
        "open(sys.argv[2], 'w').close()\n"
        "time.sleep(60)\n"
    )
    popen = subprocess.Popen
    saved, ready = tmp_path / "said", tmp_path / "up"

    def start_child(command, **options):
        process = popen([sys.executable, str(child), str(saved), str(ready)], **options)
        while not ready.exists():
            time.sleep(0.05)
        popen([sys.executable, "-c", f"import os; os.kill({os.getpid()}, {int(signal.SIGTERM)})"])
        return process

    monkeypatch.setattr(running.subprocess, "Popen", start_child)
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(StoppedError, match="Stopped by SIGTERM.*repeat the command"):
            running.start_process(tmp_path / "jobs", tmp_path / "log")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert saved.read_text() == "saved"
