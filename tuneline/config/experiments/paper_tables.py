"""The tables of LlamaFactory's paper as recipes: one run a cell, checked before any of them starts.

Zheng et al. 2024, arXiv:2403.13372: table 4 (training efficiency on PubMed's abstracts) and table 5 (ROUGE on CNN/DM,
XSum and AdGen). The runs are data in `paper_tables.yaml`, the paper's own numbers in `paper_numbers.yaml`.
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
"""The row of the untrained model: each run scores it beside its own."""

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
        """In words, and as a file's name."""
        return f"{self.task}-{self.method}"


@dataclass(frozen=True)
class TableOptions:
    """What a user asks for."""

    budget: Budget = "paper"
    model: str | None = None
    """Name of the catalogue, folder, or `owner/name` on the hub; None takes the budget's own."""

    sources: Mapping[str, Path] = field(default_factory=dict)
    """Task -> file of its rows; those of other tasks come from the hub."""

    tasks: tuple[str, ...] = ()
    """None of them means all."""

    methods: tuple[str, ...] = ()
    seed: int = 0
    compat: bool = False
    """Score answers as LlamaFactory does, too."""


@cache
def runs() -> dict[str, Any]:
    """Read what the runs are made of."""
    return dict(yaml.safe_load(RUNS_FILE.read_text(encoding="utf-8")))


@cache
def numbers() -> dict[str, Any]:
    """Read what the paper reports."""
    return dict(yaml.safe_load(NUMBERS_FILE.read_text(encoding="utf-8")))


def build_cells(asked: TableOptions) -> list[Cell]:
    """Return the runs that fill the tables, in their order, each written under the state root and checked.

    Raises:
        TunelineError: A name is unknown, a file is missing, or a run would be refused.
    """
    for kind, given, known in (
        ("budget", [asked.budget], BUDGETS),
        ("task", [*asked.tasks, *asked.sources], runs()["tasks"]),
        ("method", asked.methods, runs()["methods"]),
    ):
        if unknown := [name for name in given if name not in known]:
            raise NotFoundError.among(kind, unknown[0], known)
    found = [
        Cell(table, task, method, _checked(asked, table, task, method))
        for table, told in runs()["tables"].items()
        for task in _chosen(told["tasks"], asked.tasks)
        for method in _chosen(told["methods"], asked.methods)
    ]
    if not found:
        raise RecipeError(
            f"--task {' '.join(asked.tasks)} --method {' '.join(asked.methods)}: the paper has no such cell. It has "
            f"{'; '.join(_shown(told) for told in runs()['tables'].values())}."
        )
    return found


def _shown(told: Mapping[str, Any]) -> str:
    return f"{', '.join(told['methods'])} on {', '.join(told['tasks'])}"


def _chosen(names: Iterable[str], asked: tuple[str, ...]) -> list[str]:
    return [name for name in names if not asked or name in asked]


def _checked(asked: TableOptions, table: str, task: str, method: str) -> RunConfig:
    """Write a cell's run configuration and check it as if a person had written it."""
    content = run_content(asked, table, task, method)
    path = state.folder("paper-tables") / f"{task}-{method}-{identity.digest(content)[:12]}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    try:
        checked = load.load(path)
        existence.check(checked.recipe)
    except TunelineError as error:
        raise type(error)(f"{task}, {method}: {str(error).replace(str(path), str(path.name))}") from error
    return checked


def run_content(asked: TableOptions, table: str, task: str, method: str) -> dict[str, Any]:
    """Return a cell's run configuration."""
    told, added = runs()["tables"][table], runs()["methods"][method]
    smaller = runs()["budgets"][asked.budget]
    fewer = smaller.get(table, {})
    recipe = _over(told["recipe"], fewer.get("recipe", {}), added, smaller.get("methods", {}).get(method, {}))
    model = parse_model(asked.model) if asked.model else fewer.get("model", told["model"])
    recipe["train"]["seed"] = asked.seed
    if asked.compat and table == "downstream":
        recipe["evaluate"]["metrics"] = ["rouge1", "rouge2", "rougeL", COMPAT_METRIC]
    size = "" if asked.budget == "paper" else f"-{asked.budget}"
    name = f"{task.replace('_', '-')}-{model_slug(model)}-{method}{size}"
    recipe["registry"]["model_name"] = name
    sources = [_source(asked, task, fewer)]
    whole = {"stage": told["stage"], "model": model, "sources": sources, **recipe}
    return {"run_name": f"{name}-{{date}}-{{time}}", "parameters": {"recipe": whole}}


def _source(asked: TableOptions, task: str, fewer: Mapping[str, Any]) -> dict[str, Any]:
    told = runs()["tasks"][task]
    rows = _over(told["rows"], fewer.get("rows", {}))
    if path := asked.sources.get(task):
        return {"name": task, "path": str(Path(path).expanduser().resolve()), **rows}
    source = _over({"name": task}, told["hub"], rows)
    if fewer:  # a few rows are no reason to fetch all
        source["streaming"] = True
        source.pop("sample", None)
    return source


def _over(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay sections over each other: keys of the later ones win, inside sections too."""
    made: dict[str, Any] = {}
    for layer in layers:
        for key, value in copy.deepcopy(dict(layer)).items():
            under = made.get(key)
            made[key] = _over(under, value) if isinstance(value, dict) and isinstance(under, dict) else value
    return made


def parse_model(text: str) -> dict[str, Any]:
    """Read what names a model: a folder, a name of the catalogue, or `owner/name` on the hub.

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
        f"--model {text}: there is no such folder, no such name in the catalogue ({known}), and it is no owner/name of "
        "the hub. Correct it."
    )


def model_slug(model: Mapping[str, Any]) -> str:
    """Name a model in a file's name."""
    named = model.get("repo_id") or model.get("name") or model["path"]
    return re.sub(r"[^a-z0-9]+", "-", Path(str(named)).name.lower()).strip("-") or "model"


def find_sources(folder: Path) -> dict[str, Path]:
    """Find the tasks' rows in a folder: a file or a folder called like the task, like `xsum.jsonl` or `xsum/`.

    Raises:
        SourceError: There is no folder, it holds none of them, or two of one.
    """
    if not folder.is_dir():
        raise SourceError(f"--data {folder}: there is no such folder. Give one that holds {_names()}.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        task = path.name.partition(".")[0]
        if task not in runs()["tasks"]:
            continue
        if task in found:
            raise SourceError(
                f"--data {folder}: both {found[task].name} and {path.name} are called {task}. Name the one that you "
                f"mean: --source {task}={path}."
            )
        found[task] = path
    if not found:
        raise SourceError(
            f"--data {folder}: holds none of {_names()}. Name files so, or give each: --source xsum=FILE."
        )
    return found


def parse_source(text: str) -> tuple[str, Path]:
    """Read `task=file`.

    Raises:
        RecipeError: It is written otherwise.
        NotFoundError: There is no such task.
    """
    task, equals, path = text.partition("=")
    if not (task and equals and path):
        raise RecipeError(f"--source {text}: write TASK=FILE, like xsum=rows.jsonl.")
    if task not in runs()["tasks"]:
        raise NotFoundError.among("task", task, runs()["tasks"])
    return task, Path(path)


def _names() -> str:
    return ", ".join(f"{task}.jsonl" for task in runs()["tasks"])
