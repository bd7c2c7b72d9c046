"""`tuneline paper-tables`: small tables with the tiny model, and a slow one with the real small model."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import tiny
from tuneline.tracking.experiments import paper_report as pages

pytestmark = pytest.mark.zenml
COMMAND = [sys.executable, "-m", "tuneline.cli.main", "paper-tables"]
TINY = ["--budget", "tiny", "--model", "model", "--data", "rows"]


def run_command(project, *arguments, code=0):
    run = subprocess.run([*COMMAND, *arguments], cwd=project, capture_output=True, text=True)
    assert run.returncode == code, f"{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    return run


def read_cells(project, output="paper-tables"):
    return json.loads((project / output / pages.FIGURES).read_text())["cells"]


@pytest.fixture(scope="module")
def rows(project):
    """A project with local rows for two of the tasks."""
    tiny.write_texts(project / "rows" / "pubmed.jsonl")
    adgen_rows = [{"content": f"类型#裙*颜色#{i}", "summary": f"这是第{i}条裙子，很好。"} for i in range(30)]
    tiny.write_jsonl(project / "rows" / "adgen.jsonl", adgen_rows)
    return project


@pytest.fixture(scope="module")
def one_cell_per_table(rows):
    """Output of a command that measures one cell of each table."""
    return run_command(rows, *TINY, "--task", "pubmed", "--task", "adgen", "--method", "lora", "--compat").stdout


def test_each_cell_shows_measured_and_published_values(rows, one_cell_per_table):
    efficiency, downstream = (cell["measured"] for cell in read_cells(rows))

    assert "2 of 2: AdGen, lora: trained; ROUGE" in one_cell_per_table
    assert 500 < efficiency["training"]["tokens"] <= 1024
    assert efficiency["training"]["train_memory_bytes"] > 0
    assert efficiency["training"]["train_cpu_seconds"] > 0
    assert efficiency["totals"]["model"]["perplexity"] < efficiency["totals"]["base"]["perplexity"]
    assert efficiency["totals"]["model"]["scored_tokens"] > 100
    assert efficiency["parameters"] == 28_448
    assert downstream["scores"]["rouge_mean"]["model"]["num_items"] == 8
    assert set(downstream["scores"]) >= {"llamafactory_mean", "rouge1", "rougeL"}
    assert "one token per character of Han" in downstream["methods"]["rouge1"]
    text = (rows / "paper-tables" / pages.MARKDOWN).read_text()
    assert re.search(r"^\| lora \|.* 7\.91 GB \|", text, re.MULTILINE)
    assert "28.80" not in text.split("## Table")[0], "XSum was not selected"
    assert "20.29 (+19.68)" in text


def test_a_repeated_command_reads_all_cells_from_the_cache(rows, one_cell_per_table):
    before = read_cells(rows)

    again = run_command(rows, *TINY, "--task", "pubmed", "--task", "adgen", "--method", "lora", "--compat").stdout

    assert "1 of 2: PubMed, lora: from the cache" in again
    assert "2 of 2: AdGen, lora: from the cache" in again
    assert [cell["measured"]["training"] for cell in read_cells(rows)] == [
        cell["measured"]["training"] for cell in before
    ]
    logs = rows / "paper-tables" / "logs"
    assert (logs / "pubmed-lora.log").stat().st_mtime > (logs / "adgen-lora.log").stat().st_mtime, (
        "the order of one process"
    )


@pytest.mark.slow
def test_an_interrupted_command_resumes(rows):
    arguments = [*TINY, "--task", "pubmed", "--method", "freeze", "--method", "full", "--output", "stopped"]
    command = subprocess.Popen(
        [*COMMAND, *arguments], cwd=rows, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 600
    second_log = rows / "stopped" / "logs" / "pubmed-freeze.log"
    while not second_log.exists() and command.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert second_log.exists(), command.communicate()[1][-2000:]
    command.send_signal(signal.SIGTERM)
    _, errors = command.communicate(timeout=600)
    assert command.returncode == 2
    assert errors.splitlines()[-1].startswith("Stopped by SIGTERM. Finished cells are kept; repeat the command")

    run_command(rows, *arguments)

    assert [(cell["method"], cell["status"]) for cell in read_cells(rows, "stopped")] == [
        ("full", "done"),
        ("freeze", "done"),
    ]


def test_a_failed_cell_is_reported_and_sets_the_exit_code(rows):
    """The rows are deleted between the check and the run, so the reason comes from the run."""
    deleted = rows / "deleted.jsonl"
    shutil.copy(rows / "rows" / "pubmed.jsonl", deleted)
    code = (
        "import sys; from pathlib import Path; from tuneline.runner import paper_tables as running\n"
        "check = running.check\n"
        f"running.check = lambda cells: (check(cells), Path({str(deleted)!r}).unlink())\n"
        "from tuneline.cli.main import main\n"
        f"sys.argv = {['tuneline', *COMMAND[3:], *TINY, '--source', f'pubmed={deleted}']!r}\n"
        "sys.argv += ['--task', 'pubmed', '--method', 'lora', '--output', 'failed']\n"
        "main()"
    )

    run = subprocess.run([sys.executable, "-c", code], cwd=rows, capture_output=True, text=True)

    assert run.returncode == 1, run.stderr[-2000:]
    assert "1 of 1: PubMed, lora: failed: " in run.stdout
    (cell,) = read_cells(rows, "failed")
    assert str(deleted) in cell["reason"]
    assert "## Failed cells" in (rows / "failed" / pages.MARKDOWN).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "tiny", "--model", "modle"], "--model modle: expected a folder"),
        ([*TINY, "--task", "xsum", "--source", "xsum=nowhere.jsonl"], "xsum, full: sources.xsum.path"),
        ([*TINY, "--task", "pubmet"], "Unknown task 'pubmet'. Did you mean 'pubmed'?"),
        (
            [*TINY, "--task", "pubmed", "--method", "lora", "--output", "run.yaml"],
            "--output run.yaml is a file, expected a folder",
        ),
        (
            ["--budget", "small", "--model", "model", "--data", "rows", "--task", "pubmed", "--method", "lora"],
            "rank 128",
        ),
    ],
)
def test_an_invalid_argument_is_one_error_line_before_anything_runs(rows, arguments, message):
    run = run_command(rows, *arguments, code=2)

    assert message in run.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("task", ["pubmed", "adgen"])
def test_the_small_budget_with_the_real_model(project, test_data, task):
    """Training lowers perplexity on held-out abstracts, and LoRA needs less memory than full fine-tuning."""
    files = {"pubmed": "pubmed/pubmed_abstracts.jsonl.gz", "adgen": "summarization/adgen.jsonl.gz"}
    methods = ["--method", "full", "--method", "lora"] if task == "pubmed" else ["--method", "lora"]

    run_command(project, "--budget", "small", "--task", task, "--source", f"{task}={test_data / files[task]}", *methods)

    results = {cell["method"]: cell["measured"] for cell in read_cells(project)}
    for measured in results.values():
        if task == "pubmed":
            assert measured["totals"]["model"]["perplexity"] < measured["totals"]["base"]["perplexity"]
            assert 19_000 < measured["training"]["tokens"] < 21_000
        else:
            assert measured["scores"]["rouge_mean"]["gain"]["mean"] > 0
    if task == "pubmed":
        assert results["lora"]["training"]["train_memory_bytes"] < results["full"]["training"]["train_memory_bytes"]
