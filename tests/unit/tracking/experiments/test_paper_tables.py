"""The report of the paper's tables, from cells that are done, failed, or not run yet."""

import json
import re

import pytest

from tuneline.config.experiments.paper_tables import TableOptions, run_content
from tuneline.statistics import Interval
from tuneline.tracking.experiments import paper_report as pages
from tuneline.tracking.experiments import paper_tables as tables
from tuneline.tracking.experiments.paper_cell import CellMeasurement, CellResult, CellScore

OPTIONS = TableOptions("small")


def cell_score(mean):
    return CellScore.of(Interval(mean, mean - 0.01, mean + 0.01, 25))


def make_measurement(memory=1e9, speed=100.0, perplexity=20.0, rouge=0.2, **changes):
    values = {
        "run_name": "a-run",
        "steps": {"train": "ran"},
        "parameters": 1e8,
        "training": {
            "trainable_parameters": 2.5e6,
            "train_memory_bytes": memory,
            "tokens_per_second": speed,
            "train_seconds": 10.0,
            "train_cpu_seconds": 20.0,
        },
        "environment": {"device": "cpu", "threads": "2"},
        "decisions": {},
        "scores": {
            "rouge_mean": {"base": cell_score(0.1), "model": cell_score(rouge), "gain": cell_score(rouge - 0.1)}
        },
        "totals": {"base": {"perplexity": 25.0}, "model": {"perplexity": perplexity}},
        "methods": {},
        "rows": {"train": 50, "validation": 25},
        "contaminated": 0,
    }
    return CellMeasurement.model_validate(values | changes)


def cell(task, method, measured=None, options=OPTIONS, **changes):
    table = "efficiency" if task == "pubmed" else "downstream"
    recipe = run_content(options, table, task, method)["parameters"]["recipe"]
    status = "done" if measured else "waiting"
    values = {"table": table, "task": task, "method": method, "status": status, "recipe": recipe, "measured": measured}
    return CellResult.model_validate(values | changes)


@pytest.fixture
def results():
    return [
        cell("pubmed", "full", make_measurement(memory=2e9, speed=50.0)),
        cell("pubmed", "lora", make_measurement(memory=8e8, speed=60.0, perplexity=19.5)),
        cell("pubmed", "qlora", status="failed", reason="Set x | y <b>first</b>."),
        cell("pubmed", "freeze"),
        cell("xsum", "lora", make_measurement(rouge=0.235)),
    ]


def row(text, name):
    return [cell.strip() for cell in re.search(rf"^\| {re.escape(name)} \|(.*)\|$", text, re.MULTILINE)[1].split("|")]


def test_measured_figures_are_shown_next_to_the_papers(results):
    text = pages.to_markdown(OPTIONS, results)

    assert row(text, "lora") == [
        *("2.50 M", "0.80 GB", "0.40", "8.0", "60.0", "1.20", "30.0", "19.50"),
        *("7.91 GB", "0.46", "3.2", "3,521", "1.14", "10.19"),
    ]
    assert row(text, "base (untrained)")[7:] == ["25.00", "-", "-", "-", "-", "-", "11.83"]
    assert "smollm2-135m-instruct and the paper's Gemma-2B" in text


def test_rouge_is_shown_with_interval_and_gain():
    text = pages.to_markdown(OPTIONS, [cell("xsum", "lora", make_measurement(rouge=0.235))])

    assert row(text, "base (untrained)") == ["10.00 [9.0, 11.0]", "13.89"]
    assert row(text, "lora") == ["23.50 [22.5, 24.5] (+13.50)", "28.80 (+14.91)"]


def test_failed_cells_have_a_reason_and_missing_cells_are_waiting(results):
    text, page = pages.to_markdown(OPTIONS, results), pages.to_html(OPTIONS, results)

    assert row(text, "qlora")[:2] == ["failed", "failed"]
    assert "PubMed, qlora: failed: Set x | y <b>first</b>." in text
    assert "Set x | y &lt;b&gt;first&lt;/b&gt;." in page
    assert "## Not run yet\n\n- PubMed, freeze" in text
    assert "5 cells, 3 done, 1 failed, 1 waiting" in text


def test_the_page_has_the_same_tables_and_no_external_resources(results):
    page = pages.to_html(OPTIONS, results)

    assert page.count("<table>") == 5, "two measured tables, the settings, two tables of the paper"
    assert "<td>0.80 GB</td>" in page
    assert "http" not in page


def test_settings_that_differ_from_the_paper_are_listed_with_their_methods(results):
    rows = {(row[0], row[1]): row for row in pages.settings(results).rows}

    assert rows["train.learning_rate", "efficiency"][2:] == ["all", "0.0001", "1e-05"]
    tiny = [cell("pubmed", "full", options=TableOptions("tiny")), cell("pubmed", "lora", options=TableOptions("tiny"))]
    assert {tuple(row) for row in pages.settings(tiny).rows} >= {("method.r", "efficiency", "lora", "8", "128")}
    paper = [cell("pubmed", "full", options=TableOptions("paper"))]
    assert pages.settings(paper).rows[0][0] == "none"


def test_a_model_of_the_paper_is_compared_with_its_own_figures():
    options = TableOptions("paper", model="Qwen/Qwen2-7B")
    cells = [cell("xsum", "full", make_measurement(), options), cell("pubmed", "full", make_measurement(), options)]

    assert tables.reference_model(cells, "downstream") == "Qwen2-7B"
    assert tables.reference_model(cells, "efficiency") == "Gemma-2B", "the paper has no Qwen2-7B there"


def test_resumed_trainings_and_contaminated_items_are_reported():
    measurement = make_measurement(decisions={"resume": "resumed from step 3 of 9"}, contaminated=2)

    text = "\n".join(pages.differences([cell("xsum", "full", measurement)]))

    assert "the training resumed from step 3 of 9, and its memory and speed are measured from that step" in text
    assert "XSum: held-out rows that are also in the training rows: 2." in text


def test_the_json_file_contains_all_figures(results, tmp_path):
    pages.write(tmp_path, OPTIONS, results)

    content = json.loads((tmp_path / pages.FIGURES).read_text())
    assert content["asked"]["seed"] == 0
    assert content["cells"][1]["measured"]["training"]["train_memory_bytes"] == 8e8
    assert content["cells"][1]["recipe"]["train"]["learning_rate"] == 1e-4
    assert content["cells"][2]["reason"].startswith("Set x")
    assert set(content["versions"]) >= {"tuneline", "torch", "python"}
    assert content["paper"]["efficiency"]["Gemma-2B"]["full"] == [2.51, 17.06, 3090.42, 10.34]
    assert sorted(path.name for path in tmp_path.iterdir()) == [pages.FIGURES, pages.HTML, pages.MARKDOWN]


def test_the_summary_line_has_the_result_of_a_cell(results):
    assert tables.summary_line(results[1]) == "PubMed, lora: trained; 0.80 GB, 60.0 tokens/s, perplexity 19.50"
    assert tables.summary_line(results[3]) == "PubMed, freeze: waiting"
    assert tables.summary_line(results[4]).endswith("ROUGE 23.50 [22.5, 24.5] (+13.50)")
