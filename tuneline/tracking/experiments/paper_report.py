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
from tuneline.tracking.experiments import paper_tables as table_builder
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


def write(folder: Path, options: TableOptions, results: list[CellResult]) -> None:
    """Write the report of all cells in their current state."""
    for name, text in (
        (MARKDOWN, to_markdown(options, results)),
        (HTML, to_html(options, results)),
        (FIGURES, json.dumps(figures(options, results), indent=1, ensure_ascii=False)),
    ):
        filesystem.write_atomic(folder / name, text)


def figures(options: TableOptions, results: list[CellResult]) -> dict[str, Any]:
    """Return all measurements with settings, seed, versions, machine, and the numbers of the paper."""
    return {
        "asked": json.loads(json.dumps(asdict(options), default=str)),
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


def to_markdown(options: TableOptions, results: list[CellResult]) -> str:
    """Return the report as Markdown."""
    parts = [f"# The tables of {PAPER}, reproduced by Tuneline", summary(options, results)]
    parts += [_markdown(table) for table in table_builder.all_tables(results)]
    for title, lines in notes(results):
        parts += [f"## {title}", "\n".join(f"- {result}" for result in lines)]
    parts += [_markdown(table) for table in (settings(results), *table_builder.paper_own_tables())]
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    rows = [table.head, ["---", *["---:"] * (len(table.head) - 1)], *table.rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return f"## {table.title}\n\n" + "\n".join(lines)


def to_html(options: TableOptions, results: list[CellResult]) -> str:
    """Return the report as an HTML page."""
    return render.page(
        "paper_tables",
        title=f"The tables of {PAPER}, reproduced by Tuneline",
        summary=summary(options, results),
        measured=[(table, _paper_columns(table)) for table in table_builder.all_tables(results)],
        notes=notes(results),
        others=[(table, []) for table in (settings(results), *table_builder.paper_own_tables())],
    )


def _paper_columns(table: Table) -> list[int]:
    """Return the columns that hold the paper's own numbers."""
    return [i for i, name in enumerate(table.head) if ": " in name]


def summary(options: TableOptions, results: list[CellResult]) -> str:
    """Return a paragraph on what was run and the status of the cells."""
    count = {status: sum(result.status == status for result in results) for status in ("done", "failed", "waiting")}
    state = ", ".join(f"{number} {status}" for status, number in count.items() if number)
    return f"Budget {options.budget}, seed {options.seed}: {len(results)} cells, {state}. Each is one pipeline run."


def notes(results: list[CellResult]) -> Iterator[tuple[str, list[str]]]:
    """Yield the notes below the tables, by title."""
    if failed := [table_builder.summary_line(result) for result in results if result.status == "failed"]:
        yield "Failed cells", failed
    if waiting := [f"{TASK_TITLES[result.task]}, {result.method}" for result in results if result.status == "waiting"]:
        yield "Not run yet", [", ".join(waiting)]
    yield "Differences from the paper", [*differences(results)]
    kinds = dict.fromkeys(result.table for result in results)
    yield "Measurement", [text for kind in kinds for text in MEASUREMENT_NOTES[kind]]
    if runs := [
        f"{TASK_TITLES[result.task]}, {result.method}: {result.measured.run_name}"
        for result in results
        if result.measured
    ]:
        yield "Pipeline runs (tuneline compare RUN RUN)", runs


def differences(results: list[CellResult]) -> Iterator[str]:
    """Yield the differences from the paper other than settings: model, rows, machine, software."""
    for kind in dict.fromkeys(result.table for result in results):
        paper_model = tables.runs()["tables"][kind]["model"]["repo_id"]
        model = table_builder.base_model_name(results, kind)
        yield f"Model of {kind}: {model}{'' if model == paper_model else f' instead of {paper_model}'}."
    rows = {result.task: result.measured.rows for result in results if result.measured}
    for task, count in rows.items():
        yield f"Rows of {TASK_TITLES[task]}: {count['train']} for training, {count['validation']} held out."
    for task, overlap in {result.task: result.measured.contaminated for result in results if result.measured}.items():
        if overlap:
            yield f"{TASK_TITLES[task]}: held-out rows that are also in the training rows: {overlap}."
    for result in results:
        if result.measured and "resume" in result.measured.decisions:
            yield (
                f"{TASK_TITLES[result.task]}, {result.method}: the training {result.measured.decisions['resume']}, and "
                "its memory and speed are measured from that step."
            )
    machines = dict.fromkeys(_machine(result.measured.environment) for result in results if result.measured)
    if machines:
        yield f"Machine: {'; '.join(machines)}. The paper's: one NVIDIA A100 of 40 GB."
    yield "The paper used flash attention everywhere, and Unsloth for LoRA and QLoRA; here Tuneline's optimizations."


def settings(results: list[CellResult]) -> Table:
    """Return a table of the settings that differ from the paper's, with their methods."""
    changes: dict[tuple[str, str, str, str], list[str]] = {}
    for result in results:
        for key, (value, paper_value) in _changed_settings(result).items():
            changes.setdefault((result.table, key, value, paper_value), []).append(result.method)
    methods_by_table = {
        kind: {result.method for result in results if result.table == kind} for kind in table_builder.METHOD_ORDER
    }
    rows = [
        [
            key,
            kind,
            "all" if set(methods) == methods_by_table[kind] else ", ".join(dict.fromkeys(methods)),
            value,
            paper_value,
        ]
        for (kind, key, value, paper_value), methods in changes.items()
    ]
    head = ["setting", "table", "methods", "here", "in the paper's recipes"]
    return Table("Settings that differ from the paper's", head, rows or [["none", *[table_builder.EMPTY_CELL] * 4]])


def _machine(environment: Mapping[str, str]) -> str:
    names = ("device", "instruction_set", "threads", "torch", "transformers", "peft")
    return ", ".join(f"{name} {environment[name]}" for name in names if name in environment)


def _changed_settings(result: CellResult) -> dict[str, tuple[str, str]]:
    """Return key -> (our value, value of the paper's recipe) for settings that differ."""
    content = tables.run_content(TableOptions("paper"), result.table, result.task, result.method)
    paper_values = dict(_flatten(content["parameters"]["recipe"]))
    values = dict(_flatten(result.recipe))
    keys = [key for key in paper_values if key.partition(".")[0] not in (*RUN_SPECIFIC_SECTIONS, "model")]
    return {
        key: (values[key], paper_values[key])
        for key in keys
        if key in values and _differs(values[key], paper_values[key])
    }


def _differs(value: str, paper_value: str) -> bool:
    try:
        return float(value) != float(paper_value)
    except ValueError:
        return value != paper_value


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
