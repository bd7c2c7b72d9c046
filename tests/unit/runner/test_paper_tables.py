"""Cells are measured one by one; what fails is told, what is done stays done."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.tracking.experiments.test_paper_tables import measured
from tuneline.config.experiments.paper_tables import Cell
from tuneline.config.run_config import RunConfig
from tuneline.errors import StoppedError
from tuneline.runner import paper_tables as running


class Recipe:
    """Stands for a recipe, which is not looked at here."""

    def model_dump(self, mode):
        return {}


def cells(tmp_path, *methods):
    return [
        Cell("efficiency", "pubmed", method, RunConfig(tmp_path / f"{method}.yaml", "pretrain_pipeline", Recipe(), {}))
        for method in methods
    ]


class Processes:
    """Stands for the processes: a list of what each does with its jobs, `method -> what`."""

    def __init__(self, *behaviours):
        self.behaviours = list(behaviours)
        self.asked = []

    def __call__(self, jobs, log):
        pairs = [(Path(config).stem, Path(result)) for config, result in json.loads(jobs.read_text())]
        self.asked.append([name for name, _ in pairs])
        log.write_text("starting\nRuntimeError: out of luck\n")
        told, code = self.behaviours.pop(0)
        for name, result in pairs:
            if name not in told:
                break
            result.with_suffix(running.STARTED_SUFFIX).touch()
            if told[name] == "done":
                result.write_text(measured().model_dump_json())
            elif told[name]:
                result.with_suffix(running.ERROR_SUFFIX).write_text(told[name])
                break
            else:
                break
        return code


def run(tmp_path, processes, *methods):
    heard = []
    results = running.run(
        cells(tmp_path, *methods), tmp_path / "logs", lambda found, number: heard.append(found[number]), processes
    )
    assert [each.method for each in heard] == list(methods), "each is told once, when it ends"
    return results


def test_a_process_that_computed_ends_and_the_next_goes_on_with_the_rest(tmp_path):
    processes = Processes(({"full": "done", "lora": "done"}, 0), ({"qlora": "done"}, 0))

    results = run(tmp_path, processes, "full", "lora", "qlora")

    assert processes.asked == [["full", "lora", "qlora"], ["qlora"]]
    assert {each.status for each in results} == {"done"}


def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path):
    processes = Processes(
        ({"full": "done", "lora": "Set method.r lower."}, 2), ({"qlora": ""}, 1), ({"freeze": "done"}, 0)
    )

    results = run(tmp_path, processes, "full", "lora", "qlora", "freeze")

    assert [each.status for each in results] == ["done", "failed", "failed", "done"]
    assert results[1].reason == "Set method.r lower."
    assert results[2].reason == "RuntimeError: out of luck (exit code 1; full log: pubmed-qlora.log)"


def test_a_process_that_was_killed_is_told_by_its_signal(tmp_path):
    (only,) = run(tmp_path, Processes(({"full": ""}, -signal.SIGKILL)), "full")

    assert only.reason == "The process was ended by SIGKILL, as when the system runs out of memory."


def test_a_process_that_falls_after_its_cell_is_done_costs_no_other_cell(tmp_path):
    results = run(tmp_path, Processes(({"full": "done"}, -signal.SIGSEGV), ({"lora": "done"}, 0)), "full", "lora")

    assert [each.status for each in results] == ["done", "done"]


def test_a_process_that_begins_nothing_does_not_begin_for_ever(tmp_path):
    results = run(tmp_path, Processes(({}, 1), ({}, 1)), "full", "lora")

    assert [each.status for each in results] == ["failed", "failed"]


def test_a_real_process_tells_a_mistake_in_its_own_words(tmp_path):
    """Through the module that measures, without a store: the file is gone when it is read."""
    (only,) = running.run(cells(tmp_path, "full"), tmp_path / "logs", lambda *_: None)

    assert only.status == "failed"
    assert str(tmp_path / "full.yaml") in only.reason
    assert "Traceback" not in only.reason


def test_a_signal_is_handed_on_and_waited_for(tmp_path, monkeypatch):
    """The child says that it was asked, and only then is the command over."""
    child = tmp_path / "child.py"
    child.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], 'w').write('saved'), sys.exit(0)))\n"
        "open(sys.argv[2], 'w').close()\n"
        "time.sleep(60)\n"
    )
    popen = subprocess.Popen
    said, up = tmp_path / "said", tmp_path / "up"

    def started(command, **options):
        process = popen([sys.executable, str(child), str(said), str(up)], **options)
        while not up.exists():
            time.sleep(0.05)
        popen([sys.executable, "-c", f"import os; os.kill({os.getpid()}, {int(signal.SIGTERM)})"])
        return process

    monkeypatch.setattr(running.subprocess, "Popen", started)
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(StoppedError, match="Stopped by SIGTERM.*repeat the command"):
            running.start_process(tmp_path / "jobs", tmp_path / "log")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said.read_text() == "saved"
