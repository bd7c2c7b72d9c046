"""The report of the paper's tables: Markdown and HTML for people, JSON with every figure for programs."""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from tuneline.config.experiments import paper_tables as tables
from tuneline.config.experiments.paper_tables import TableOptions
from tuneline.tracking.experiments import paper_tables as making
from tuneline.tracking.experiments.paper_cell import CellResult
from tuneline.tracking.experiments.paper_tables import TASK_TITLES, Table

MARKDOWN, HTML, FIGURES = "tables.md", "tables.html", "figures.json"
LIBRARIES = ("tuneline", "torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "zenml", "mlflow")
PAPER = "LlamaFactory (Zheng et al. 2024, arXiv:2403.13372)"
RUN_SPECIFIC_SECTIONS = ("sources", "registry")
"""Parts of a recipe that are named by place and model."""

MEASUREMENT_NOTES = {
    "efficiency": (
        "Memory is the peak of the training loop beyond what its process held before the model was loaded: on a GPU as "
        "torch's allocator counts it, on a CPU pages of the process. Each method trained in a process of its own.",
        "Bytes a parameter: that memory over all parameters of the base model. The paper's are worked out from its "
        "table in the same way.",
        "Tokens a second: all tokens of the training rows, none of them padding, over the loop's seconds; loading and "
        "checks are left out. Processor seconds, of all threads, tell more on a machine that others use too.",
        "Perplexity is that of held-out texts, of which no token was trained on; the paper's is that of its training "
        "text. The untrained model is scored on the same texts.",
    ),
    "downstream": (
        "The mean of ROUGE-1, 2 and L of each held-out row, with the 95 % bootstrap interval over rows, and the paired "
        "gain over the untrained model; Chinese by characters. The paper cuts texts with jieba and scores with "
        "rouge_chinese, so compare gains, not scores.",
    ),
}


STYLE = (
    "body{font:14px system-ui;margin:2em;max-width:110em}table{border-collapse:collapse;margin:0 0 1.5em}"
    "td,th{border:1px solid #ccc;padding:4px 8px;text-align:right}td:first-child,th:first-child{text-align:left}"
    "th{background:#f4f4f4;font-weight:600}.paper{color:#666;background:#fafafa}.wide{overflow-x:auto}"
)


def write(folder: Path, asked: TableOptions, results: list[CellResult]) -> None:
    """Write the report of all cells as they are now."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        (MARKDOWN, to_markdown(asked, results)),
        (HTML, to_html(asked, results)),
        (FIGURES, json.dumps(figures(asked, results), indent=1, ensure_ascii=False)),
    ):
        fresh = folder / f"{name}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(folder / name)


def figures(asked: TableOptions, results: list[CellResult]) -> dict[str, Any]:
    """Return everything that was measured, with settings, seed, versions, machine, and the paper's numbers."""
    return {
        "asked": json.loads(json.dumps(asdict(asked), default=str)),
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "machine": {
            "system": platform.platform(terse=True),
            "processor": platform.machine(),
            "cores": psutil.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
        },
        "cells": [result.model_dump(mode="json") for result in results],
        "paper": tables.numbers(),
    }


def to_markdown(asked: TableOptions, results: list[CellResult]) -> str:
    """Write the report in Markdown."""
    parts = [f"# The tables of {PAPER}, made by Tuneline", summary(asked, results)]
    parts += [_markdown(table) for table in making.all_tables(results)]
    for title, lines in notes(results):
        parts += [f"## {title}", "\n".join(f"- {each}" for each in lines)]
    parts += [_markdown(table) for table in (settings(results), *making.paper_own_tables())]
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    rows = [table.head, ["---", *["---:"] * (len(table.head) - 1)], *table.rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return f"## {table.title}\n\n" + "\n".join(lines)


def to_html(asked: TableOptions, results: list[CellResult]) -> str:
    """Write the report as a page that needs nothing beside it."""
    title = f"The tables of {PAPER}, made by Tuneline"
    body = [f"<h1>{escape(title)}</h1><p>{escape(summary(asked, results))}</p>"]
    body += [_html(table) for table in making.all_tables(results)]
    for name, lines in notes(results):
        items = "".join(f"<li>{escape(each)}</li>" for each in lines)
        body.append(f"<h2>{escape(name)}</h2><ul>{items}</ul>")
    body += [_html(table) for table in (settings(results), *making.paper_own_tables())]
    head = f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
    return head + "".join(body)


def _html(table: Table) -> str:
    papers = [": " in name for name in table.head]
    kind = [' class="paper"' if paper and not table.title.startswith("Table ") else "" for paper in papers]
    head = "".join(f"<th{style}>{escape(name)}</th>" for style, name in zip(kind, table.head, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{style}>{escape(cell)}</td>" for style, cell in zip(kind, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    return f'<h2>{escape(table.title)}</h2><div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def summary(asked: TableOptions, results: list[CellResult]) -> str:
    """Say in a paragraph what was run, and how much of it there is."""
    count = {status: sum(each.status == status for each in results) for status in ("done", "failed", "waiting")}
    state = ", ".join(f"{number} {status}" for status, number in count.items() if number)
    return (
        f"Budget {asked.budget}, seed {asked.seed}: {len(results)} cells, {state}. Each is a pipeline run of its own."
    )


def notes(results: list[CellResult]) -> Iterator[tuple[str, list[str]]]:
    """Yield what stands below the tables, by title."""
    if failed := [making.summary_line(each) for each in results if each.status == "failed"]:
        yield "Failed cells", failed
    if waiting := [f"{TASK_TITLES[each.task]}, {each.method}" for each in results if each.status == "waiting"]:
        yield "Not run yet", [", ".join(waiting)]
    yield "What differs from the paper", [*differences(results)]
    kinds = dict.fromkeys(each.table for each in results)
    yield "How it is measured", [text for kind in kinds for text in MEASUREMENT_NOTES[kind]]
    if runs := [
        f"{TASK_TITLES[each.task]}, {each.method}: {each.measured.run_name}" for each in results if each.measured
    ]:
        yield "Pipeline runs (tuneline compare RUN RUN)", runs


def differences(results: list[CellResult]) -> Iterator[str]:
    """Say what differs between these runs and the paper's beside their settings: model, rows, machine, software."""
    for kind in dict.fromkeys(each.table for each in results):
        theirs = tables.runs()["tables"][kind]["model"]["repo_id"]
        model = making.base_model_name(results, kind)
        yield f"Model of {kind}: {model}." if model == theirs else f"Model of {kind}: {model}, and not {theirs}."
    rows = {each.task: each.measured.rows for each in results if each.measured}
    for task, count in rows.items():
        yield f"Rows of {TASK_TITLES[task]}: {count['train']} for training, {count['validation']} held out."
    for task, held in {each.task: each.measured.contaminated for each in results if each.measured}.items():
        if held:
            yield f"{TASK_TITLES[task]}: held-out rows that stand in the training rows, too: {held}."
    for each in results:
        if each.measured and "resume" in each.measured.decisions:
            yield (
                f"{TASK_TITLES[each.task]}, {each.method}: the training {each.measured.decisions['resume']}, and its memory "
                "and speed are those from there on."
            )
    machines = dict.fromkeys(_machine(each.measured.environment) for each in results if each.measured)
    if machines:
        yield f"Machine: {'; '.join(machines)}. The paper's: one NVIDIA A100 of 40 GB."
    yield "The paper used flash attention everywhere, and Unsloth for LoRA and QLoRA; here it is Tuneline's own levers."


def settings(results: list[CellResult]) -> Table:
    """Return the settings that differ from the paper's, and those of which methods."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for each in results:
        for key, (ours, theirs) in _changed(each).items():
            found.setdefault((each.table, key, ours, theirs), []).append(each.method)
    whole = {kind: {each.method for each in results if each.table == kind} for kind in making.METHOD_ORDER}
    rows = [
        [key, kind, "all" if set(methods) == whole[kind] else ", ".join(dict.fromkeys(methods)), ours, theirs]
        for (kind, key, ours, theirs), methods in found.items()
    ]
    head = ["setting", "table", "methods", "here", "in the recipes of the paper's size"]
    return Table("Settings that differ from the paper's", head, rows or [["none", *[making.EMPTY_CELL] * 4]])


def _machine(environment: Mapping[str, str]) -> str:
    known = ("device", "instruction_set", "threads", "torch", "transformers", "peft")
    return ", ".join(f"{name} {environment[name]}" for name in known if name in environment)


def _changed(result: CellResult) -> dict[str, tuple[str, str]]:
    """Return the settings that differ from the paper's recipe of the same cell: ours, and the paper's."""
    content = tables.run_content(TableOptions("paper"), result.table, result.task, result.method)
    theirs = dict(_flat(content["parameters"]["recipe"]))
    ours = dict(_flat(result.recipe))
    keys = [key for key in theirs if key.partition(".")[0] not in (*RUN_SPECIFIC_SECTIONS, "model")]
    return {key: (ours[key], theirs[key]) for key in keys if key in ours and _differs(ours[key], theirs[key])}


def _differs(one: str, other: str) -> bool:
    try:
        return float(one) != float(other)
    except ValueError:
        return one != other


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
