"""The report of the paper's tables: Markdown and HTML pages, and JSON with every figure."""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from tuneline import filesystem
from tuneline.config.experiments import paper_tables as tables
from tuneline.config.experiments.paper_tables import TableOptions
from tuneline.html import render
from tuneline.tracking.experiments import paper_tables as making
from tuneline.tracking.experiments.paper_cell import CellResult
from tuneline.tracking.experiments.paper_tables import TASK_TITLES, Table

MARKDOWN, HTML, FIGURES = "tables.md", "tables.html", "figures.json"
LIBRARIES = ("tuneline", "torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "zenml", "mlflow")
PAPER = "LlamaFactory (Zheng et al. 2024, arXiv:2403.13372)"
RUN_SPECIFIC_SECTIONS = ("sources", "registry")
"""Sections of a recipe that depend on paths and names."""

MEASUREMENT_NOTES = {
    "efficiency": (
        "Memory is the peak of the training loop minus the memory of the process before the model was loaded: on a "
        "GPU from torch's allocator, on a CPU the resident pages of the process. Each method is trained in a separate "
        "process.",
        "Bytes per parameter: this memory divided by the number of parameters of the base model. The "
        "paper's values are computed from its table in the same way.",
        "Tokens per second: all tokens of the training rows without padding, divided by the seconds of the "
        "loop, without loading and checks. CPU seconds of all threads are more comparable on a shared machine.",
        "Perplexity is measured on held-out texts; in the paper on the training text. The untrained model is scored on "
        "the same texts.",
    ),
    "downstream": (
        "The mean of ROUGE-1, 2 and L of each held-out row, with the 95 % bootstrap interval over rows, and the paired "
        "gain over the untrained model; Chinese is tokenized by characters. The paper tokenizes with jieba and scores "
        "with rouge_chinese, so compare gains, not scores.",
    ),
}


def write(folder: Path, asked: TableOptions, results: list[CellResult]) -> None:
    """Write the report of all cells in their current state."""
    for name, text in (
        (MARKDOWN, to_markdown(asked, results)),
        (HTML, to_html(asked, results)),
        (FIGURES, json.dumps(figures(asked, results), indent=1, ensure_ascii=False)),
    ):
        filesystem.write_atomic(folder / name, text)


def figures(asked: TableOptions, results: list[CellResult]) -> dict[str, Any]:
    """Return all measurements with settings, seed, versions, machine, and the numbers of the paper."""
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
    """Return the report as Markdown."""
    parts = [f"# The tables of {PAPER}, reproduced by Tuneline", summary(asked, results)]
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
    """Return the report as an HTML page."""
    return render.page(
        "paper_tables",
        title=f"The tables of {PAPER}, reproduced by Tuneline",
        summary=summary(asked, results),
        measured=[(table, _paper_columns(table)) for table in making.all_tables(results)],
        notes=notes(results),
        others=[(table, []) for table in (settings(results), *making.paper_own_tables())],
    )


def _paper_columns(table: Table) -> list[int]:
    """Return the columns that hold the paper's own numbers."""
    return [i for i, name in enumerate(table.head) if ": " in name]


def summary(asked: TableOptions, results: list[CellResult]) -> str:
    """Return a paragraph on what was run and the status of the cells."""
    count = {status: sum(each.status == status for each in results) for status in ("done", "failed", "waiting")}
    state = ", ".join(f"{number} {status}" for status, number in count.items() if number)
    return f"Budget {asked.budget}, seed {asked.seed}: {len(results)} cells, {state}. Each is one pipeline run."


def notes(results: list[CellResult]) -> Iterator[tuple[str, list[str]]]:
    """Yield the notes below the tables, by title."""
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
    """Yield the differences from the paper other than settings: model, rows, machine, software."""
    for kind in dict.fromkeys(each.table for each in results):
        theirs = tables.runs()["tables"][kind]["model"]["repo_id"]
        model = making.base_model_name(results, kind)
        yield f"Model of {kind}: {model}." if model == theirs else f"Model of {kind}: {model} instead of {theirs}."
    rows = {each.task: each.measured.rows for each in results if each.measured}
    for task, count in rows.items():
        yield f"Rows of {TASK_TITLES[task]}: {count['train']} for training, {count['validation']} held out."
    for task, overlap in {each.task: each.measured.contaminated for each in results if each.measured}.items():
        if overlap:
            yield f"{TASK_TITLES[task]}: held-out rows that are also in the training rows: {overlap}."
    for each in results:
        if each.measured and "resume" in each.measured.decisions:
            yield (
                f"{TASK_TITLES[each.task]}, {each.method}: the training {each.measured.decisions['resume']}, and its "
                "memory and speed are measured from that step."
            )
    machines = dict.fromkeys(_machine(each.measured.environment) for each in results if each.measured)
    if machines:
        yield f"Machine: {'; '.join(machines)}. The paper's: one NVIDIA A100 of 40 GB."
    yield "The paper used flash attention everywhere, and Unsloth for LoRA and QLoRA; here Tuneline's optimizations."


def settings(results: list[CellResult]) -> Table:
    """Return a table of the settings that differ from the paper's, with their methods."""
    changes: dict[tuple[str, str, str, str], list[str]] = {}
    for each in results:
        for key, (ours, theirs) in _changed(each).items():
            changes.setdefault((each.table, key, ours, theirs), []).append(each.method)
    whole = {kind: {each.method for each in results if each.table == kind} for kind in making.METHOD_ORDER}
    rows = [
        [key, kind, "all" if set(methods) == whole[kind] else ", ".join(dict.fromkeys(methods)), ours, theirs]
        for (kind, key, ours, theirs), methods in changes.items()
    ]
    head = ["setting", "table", "methods", "here", "in the recipes for the paper"]
    return Table("Settings that differ from the paper's", head, rows or [["none", *[making.EMPTY_CELL] * 4]])


def _machine(environment: Mapping[str, str]) -> str:
    names = ("device", "instruction_set", "threads", "torch", "transformers", "peft")
    return ", ".join(f"{name} {environment[name]}" for name in names if name in environment)


def _changed(result: CellResult) -> dict[str, tuple[str, str]]:
    """Return key -> (our value, value of the paper's recipe) for settings that differ."""
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
