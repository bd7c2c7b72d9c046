"""The report of the paper's tables, from cells as they may be: done, failed, not run yet."""

import json
import re

import pytest

from tuneline.config.experiments.paper_tables import TableOptions, run_content
from tuneline.statistics import Interval
from tuneline.tracking.experiments import paper_report as pages
from tuneline.tracking.experiments import paper_tables as tables
from tuneline.tracking.experiments.paper_cell import CellMeasurement, CellResult, CellScore

ASKED = TableOptions("small")


def scored(mean):
    return CellScore.of(Interval(mean, mean - 0.01, mean + 0.01, 25))


def measured(memory=1e9, speed=100.0, perplexity=20.0, rouge=0.2, **changes):
    told = {
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
        "scores": {"rouge_mean": {"base": scored(0.1), "model": scored(rouge), "gain": scored(rouge - 0.1)}},
        "totals": {"base": {"perplexity": 25.0}, "model": {"perplexity": perplexity}},
        "methods": {},
        "rows": {"train": 50, "validation": 25},
        "contaminated": 0,
    }
    return CellMeasurement.model_validate(told | changes)


def cell(task, method, found=None, asked=ASKED, **changes):
    table = "efficiency" if task == "pubmed" else "downstream"
    recipe = run_content(asked, table, task, method)["parameters"]["recipe"]
    status = "done" if found else "waiting"
    told = {"table": table, "task": task, "method": method, "status": status, "recipe": recipe, "measured": found}
    return CellResult.model_validate(told | changes)


@pytest.fixture
def results():
    return [
        cell("pubmed", "full", measured(memory=2e9, speed=50.0)),
        cell("pubmed", "lora", measured(memory=8e8, speed=60.0, perplexity=19.5)),
        cell("pubmed", "qlora", status="failed", reason="Set x | y <b>first</b>."),
        cell("pubmed", "freeze"),
        cell("xsum", "lora", measured(rouge=0.235)),
    ]


def row(text, name):
    return [each.strip() for each in re.search(rf"^\| {re.escape(name)} \|(.*)\|$", text, re.MULTILINE)[1].split("|")]


def test_our_figures_stand_beside_those_of_the_paper(results):
    text = pages.to_markdown(ASKED, results)

    assert row(text, "lora") == [
        *("2.50 M", "0.80 GB", "0.40", "8.0", "60.0", "1.20", "30.0", "19.50"),
        *("7.91 GB", "0.46", "3.2", "3,521", "1.14", "10.19"),
    ]
    assert row(text, "base (untrained)")[7:] == ["25.00", "-", "-", "-", "-", "-", "11.83"]
    assert "smollm2-135m-instruct and the paper's Gemma-2B" in text


def test_rouge_is_told_with_interval_and_gain_beside_the_papers():
    text = pages.to_markdown(ASKED, [cell("xsum", "lora", measured(rouge=0.235))])

    assert row(text, "base (untrained)") == ["10.00 [9.0, 11.0]", "13.89"]
    assert row(text, "lora") == ["23.50 [22.5, 24.5] (+13.50)", "28.80 (+14.91)"]


def test_a_failed_cell_is_shown_with_its_reason_and_one_not_run_as_waiting(results):
    text, page = pages.to_markdown(ASKED, results), pages.to_html(ASKED, results)

    assert row(text, "qlora")[:2] == ["failed", "failed"]
    assert "PubMed, qlora: failed: Set x | y <b>first</b>." in text
    assert "Set x | y &lt;b&gt;first&lt;/b&gt;." in page
    assert "## Not run yet\n\n- PubMed, freeze" in text
    assert "5 cells, 3 done, 1 failed, 1 waiting" in text


def test_the_page_has_the_same_tables_and_needs_nothing_from_elsewhere(results):
    page = pages.to_html(ASKED, results)

    assert page.count("<table>") == 5, "two of ours, the settings, two of the paper"
    assert "<td>0.80 GB</td>" in page
    assert "http" not in page


def test_settings_that_differ_from_the_papers_are_told_with_their_methods(results):
    rows = {(each[0], each[1]): each for each in pages.settings(results).rows}

    assert rows["train.learning_rate", "efficiency"][2:] == ["all", "0.0001", "1e-05"]
    tiny = [cell("pubmed", "full", asked=TableOptions("tiny")), cell("pubmed", "lora", asked=TableOptions("tiny"))]
    assert {tuple(each) for each in pages.settings(tiny).rows} >= {("method.r", "efficiency", "lora", "8", "128")}
    paper = [cell("pubmed", "full", asked=TableOptions("paper"))]
    assert pages.settings(paper).rows[0][0] == "none"


def test_a_model_of_the_paper_is_compared_with_itself():
    asked = TableOptions("paper", model="Qwen/Qwen2-7B")
    found = [cell("xsum", "full", measured(), asked), cell("pubmed", "full", measured(), asked)]

    assert tables.reference_model(found, "downstream") == "Qwen2-7B"
    assert tables.reference_model(found, "efficiency") == "Gemma-2B", "the paper has no Qwen2-7B there"


def test_a_training_that_went_on_and_known_items_are_told():
    found = measured(decisions={"resume": "went on from step 3 of 9"}, contaminated=2)

    text = "\n".join(pages.differences([cell("xsum", "full", found)]))

    assert "the training went on from step 3 of 9, and its memory and speed are measured from that step" in text
    assert "XSum: held-out rows that are also in the training rows: 2." in text


def test_the_figures_hold_everything(results, tmp_path):
    pages.write(tmp_path, ASKED, results)

    told = json.loads((tmp_path / pages.FIGURES).read_text())
    assert told["asked"]["seed"] == 0
    assert told["cells"][1]["measured"]["training"]["train_memory_bytes"] == 8e8
    assert told["cells"][1]["recipe"]["train"]["learning_rate"] == 1e-4
    assert told["cells"][2]["reason"].startswith("Set x")
    assert set(told["versions"]) >= {"tuneline", "torch", "python"}
    assert told["paper"]["efficiency"]["Gemma-2B"]["full"] == [2.51, 17.06, 3090.42, 10.34]
    assert sorted(path.name for path in tmp_path.iterdir()) == [pages.FIGURES, pages.HTML, pages.MARKDOWN]


def test_a_line_says_what_a_cell_came_to(results):
    assert tables.summary_line(results[1]) == "PubMed, lora: trained; 0.80 GB, 60.0 tokens/s, perplexity 19.50"
    assert tables.summary_line(results[3]) == "PubMed, freeze: waiting"
    assert tables.summary_line(results[4]).endswith("ROUGE 23.50 [22.5, 24.5] (+13.50)")
