"""The tables of the LlamaFactory paper as recipes: one run per cell, all validated before the first one starts.

Zheng et al. 2024, arXiv:2403.13372: table 4 (training efficiency on PubMed abstracts) and table 5 (ROUGE on CNN/DM,
XSum and AdGen). `paper_tables.yaml` defines the runs, `paper_numbers.yaml` holds the published results.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from tuneline import identity, state
from tuneline.config import existence, load
from tuneline.config.run_config import RunConfig
from tuneline.config.sections.model import catalogue
from tuneline.errors import NotFoundError, RecipeError, SourceError, TunelineError

Budget = Literal["tiny", "small", "paper"]
BUDGETS = get_args(Budget)
RUNS_FILE = Path(__file__).parent / "paper_tables.yaml"
NUMBERS_FILE = Path(__file__).parent / "paper_numbers.yaml"
BASE_ROW = "base"
"""Row of the base model, which every run scores along with its own model."""

COMPAT_METRIC = "llamafactory_compat"


@dataclass(frozen=True)
class Cell:
    """One run of a table."""

    table: str
    task: str
    method: str
    config: RunConfig

    @property
    def name(self) -> str:
        """Name of the cell, also used in file names."""
        return f"{self.task}-{self.method}"


@dataclass(frozen=True)
class TableOptions:
    """Options of `tuneline paper-tables`."""

    budget: Budget = "paper"
    model: str | None = None
    """Catalogue name, folder, or `owner/name` on the Hub. None uses the budget's model."""

    sources: Mapping[str, Path] = field(default_factory=dict)
    """Task -> file with its rows. Other tasks are downloaded from the Hub."""

    tasks: tuple[str, ...] = ()
    """Tasks to run; empty runs all."""

    methods: tuple[str, ...] = ()
    seed: int = 0
    compat: bool = False
    """Additionally score answers with LlamaFactory's metrics."""


@cache
def runs() -> dict[str, Any]:
    """Return the definitions of the runs."""
    return dict(yaml.safe_load(RUNS_FILE.read_text(encoding="utf-8")))


@cache
def numbers() -> dict[str, Any]:
    """Return the paper's published results."""
    return dict(yaml.safe_load(NUMBERS_FILE.read_text(encoding="utf-8")))


def build_cells(options: TableOptions) -> list[Cell]:
    """Return the selected runs in order. Their files are written under the state root and validated.

    Raises:
        TunelineError: A name is unknown, a file is missing, or a run is invalid.
    """
    for kind, names, known in (
        ("budget", [options.budget], BUDGETS),
        ("task", [*options.tasks, *options.sources], runs()["tasks"]),
        ("method", options.methods, runs()["methods"]),
    ):
        if unknown := [name for name in names if name not in known]:
            raise NotFoundError.among(kind, unknown[0], known)
    cells = [
        Cell(table, task, method, _write_and_validate(options, table, task, method))
        for table, definition in runs()["tables"].items()
        for task in _select(definition["tasks"], options.tasks)
        for method in _select(definition["methods"], options.methods)
    ]
    if not cells:
        raise RecipeError(
            f"--task {' '.join(options.tasks)} --method {' '.join(options.methods)}: the paper has no such cell. "
            f"Select {'; '.join(_describe(definition) for definition in runs()['tables'].values())}."
        )
    return cells


def _describe(definition: Mapping[str, Any]) -> str:
    return f"{', '.join(definition['methods'])} on {', '.join(definition['tasks'])}"


def _select(names: Iterable[str], selection: tuple[str, ...]) -> list[str]:
    return [name for name in names if not selection or name in selection]


def _write_and_validate(options: TableOptions, table: str, task: str, method: str) -> RunConfig:
    """Write a cell's run configuration and validate it like a user's file."""
    content = run_content(options, table, task, method)
    path = state.folder("paper-tables") / f"{task}-{method}-{identity.digest(content)[:12]}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    try:
        checked = load.load(path)
        existence.check(checked.recipe)
    except TunelineError as error:
        raise type(error)(f"{task}, {method}: {str(error).replace(str(path), str(path.name))}") from error
    return checked


def run_content(options: TableOptions, table: str, task: str, method: str) -> dict[str, Any]:
    """Return a cell's run configuration."""
    definition, method_changes = runs()["tables"][table], runs()["methods"][method]
    budget = runs()["budgets"][options.budget]
    budget_changes = budget.get(table, {})
    recipe = _merge(
        definition["recipe"],
        budget_changes.get("recipe", {}),
        method_changes,
        budget.get("methods", {}).get(method, {}),
    )
    model = parse_model(options.model) if options.model else budget_changes.get("model", definition["model"])
    recipe["train"]["seed"] = options.seed
    if options.compat and table == "downstream":
        recipe["evaluate"]["metrics"] = ["rouge1", "rouge2", "rougeL", COMPAT_METRIC]
    suffix = "" if options.budget == "paper" else f"-{options.budget}"
    name = f"{task.replace('_', '-')}-{model_slug(model)}-{method}{suffix}"
    recipe["registry"]["model_name"] = name
    sources = [_source(options, task, budget_changes)]
    complete = {"stage": definition["stage"], "model": model, "sources": sources, **recipe}
    return {"run_name": f"{name}-{{date}}-{{time}}", "parameters": {"recipe": complete}}


def _source(options: TableOptions, task: str, budget_changes: Mapping[str, Any]) -> dict[str, Any]:
    definition = runs()["tasks"][task]
    rows = _merge(definition["rows"], budget_changes.get("rows", {}))
    if path := options.sources.get(task):
        return {"name": task, "path": str(Path(path).expanduser().resolve()), **rows}
    source = _merge({"name": task}, definition["hub"], rows)
    if budget_changes:  # avoids downloading the entire dataset for a few rows
        source["streaming"] = True
        source.pop("sample", None)
    return source


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings recursively; later ones take precedence."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in copy.deepcopy(dict(layer)).items():
            previous = merged.get(key)
            merged[key] = _merge(previous, value) if isinstance(value, dict) and isinstance(previous, dict) else value
    return merged


def parse_model(text: str) -> dict[str, Any]:
    """Parse the name of a model: a folder, a catalogue name, or `owner/name` on the Hub.

    Raises:
        SourceError: It is none of them.
    """
    folder = Path(text).expanduser()
    if folder.is_dir():
        return {"type": "directory", "path": str(folder.resolve())}
    if text in catalogue():
        return {"type": "catalogue", "name": text}
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text):
        return {"type": "hub", "repo_id": text, "revision": "main"}
    known = ", ".join(sorted(catalogue()))
    raise SourceError(
        f"--model {text}: expected a folder, a catalogue name ({known}) or owner/name on the Hub. Correct it."
    )


def model_slug(model: Mapping[str, Any]) -> str:
    """Return a model's name for use in file names."""
    name = model.get("repo_id") or model.get("name") or model["path"]
    return re.sub(r"[^a-z0-9]+", "-", Path(str(name)).name.lower()).strip("-") or "model"


def find_sources(folder: Path) -> dict[str, Path]:
    """Find the tasks' rows in a folder: a file or subfolder named like the task, like `xsum.jsonl` or `xsum/`.

    Raises:
        SourceError: The folder does not exist, contains no task, or contains a task twice.
    """
    if not folder.is_dir():
        raise SourceError(f"--data {folder}: folder not found. Set a folder that contains {_file_names()}.")
    sources: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        task = path.name.partition(".")[0]
        if task not in runs()["tasks"]:
            continue
        if task in sources:
            raise SourceError(
                f"--data {folder}: both {sources[task].name} and {path.name} match task {task}. Select one: "
                f"--source {task}={path}."
            )
        sources[task] = path
    if not sources:
        raise SourceError(
            f"--data {folder}: contains none of {_file_names()}. Rename the files, or set each: --source xsum=FILE."
        )
    return sources


def parse_source(text: str) -> tuple[str, Path]:
    """Parse `task=file`.

    Raises:
        RecipeError: It does not have the form TASK=FILE.
        NotFoundError: The task does not exist.
    """
    task, equals, path = text.partition("=")
    if not (task and equals and path):
        raise RecipeError(f"--source {text}: expected TASK=FILE. Write xsum=rows.jsonl, for example.")
    if task not in runs()["tasks"]:
        raise NotFoundError.among("task", task, runs()["tasks"])
    return task, Path(path)


def _file_names() -> str:
    return ", ".join(f"{task}.jsonl" for task in runs()["tasks"])
