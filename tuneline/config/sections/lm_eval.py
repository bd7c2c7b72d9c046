"""Tasks of lm-evaluation-harness in a recipe (Gao et al. 2024, doi:10.5281/zenodo.12608602): which one, and how.

For what the own exams are not: HellaSwag, GSM8K, a task of the user's. The task's file alone tells which metrics and
filters there are, so that a recipe is refused before any data are fetched. The harness is imported inside functions.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tuneline import filesystem, limits, state
from tuneline.config.base import MAX_BATCH_SIZE, MAX_ROWS, MAX_SEED, Config, LocalPath, PlainName
from tuneline.errors import NotFoundError, RecipeError, SourceError, did_you_mean

NO_FILTER = "none"
"""The harness' name of the filter of a task that names none."""


class LmEvalConfig(Config):
    """A task of lm-evaluation-harness; needs the extra `lm-eval`."""

    engine: Literal["lm_eval"]
    """Who asks and scores."""

    name: PlainName
    """Prefix of the task's metrics."""

    task: str
    """Name of a task, a group or a tag of the harness, like `hellaswag`; or the path of a task's YAML file, relative to
    the recipe's file. Data files that a task file of your own names are relative to it."""

    include_path: LocalPath | None = None
    """Folder with tasks of your own, to be named in `task`, relative to the recipe's file."""

    metrics: list[str] = Field(min_length=1)
    """Metrics of the task, like `acc_norm`; `exact_match,strict-match` where a task has several filters."""

    num_fewshot: int | None = Field(None, ge=0, le=1000)
    """Solved items in front of each; left out, as many as the task says."""

    fewshot_random_seed: int = Field(1234, ge=0, le=MAX_SEED)
    """Which are drawn, where the task draws them; the harness' own default."""

    limit: int | None = Field(None, ge=5, le=MAX_ROWS)
    """Items asked of each task, the first; left out, all."""

    apply_chat_template: bool = False
    """Ask in the model's chat template; solved items become turns."""

    batch_size: int = Field(8, ge=1, le=MAX_BATCH_SIZE)
    """Requests answered side by side. It changes the speed, not the answers."""

    def columns(self) -> list[str]:
        """Return the names of the metrics in tables and gates, without the name in front."""
        return [column_name(metric) for metric in self.metrics]

    @property
    def is_file(self) -> bool:
        """`task` is the path of a file."""
        return Path(self.task).suffix in (".yaml", ".yml")

    @model_validator(mode="after")
    def _metrics_are_named_once(self) -> "HarnessConfig":
        if len(set(self.columns())) < len(self.metrics):
            raise ValueError(f"exams.{self.name}.metrics: a metric stands twice. Leave one out.")
        return self


def column_name(metric: str) -> str:
    """Return the name of `metric,filter` in tables: MLflow takes no comma."""
    return metric.replace(",", "_")


@dataclass(frozen=True)
class TaskMetrics:
    """What is known of a task's metrics: is each a mean over items that is better when it rises?"""

    task: str
    metrics: dict[str, tuple[bool, bool]]
    """Metric -> (its aggregate is the mean of the items' values, higher is better)."""

    filters: list[str]


def check(config: LmEvalConfig) -> None:
    """Check that the harness is installed, that it knows the task, and that the task has the metrics.

    Raises:
        SourceError: The harness, or a file, is missing.
        NotFoundError: The harness has no such task.
        RecipeError: The task lacks a metric.
    """
    check_installed(config)
    for path in find_task_files(config):
        if (told := _told_by(path)) is not None:
            check_metrics(config, told)


def check_installed(config: LmEvalConfig) -> None:
    """Check that the harness is installed.

    Raises:
        SourceError: It is not.
    """
    if find_spec("lm_eval") is None:
        raise SourceError(
            f"exams.{config.name}.engine: lm_eval is not installed. Install tuneline[lm-eval], or leave the entry out."
        )


def check_metrics(config: LmEvalConfig, told: TaskMetrics) -> None:
    """Check that what a recipe asks of a task can stand in a report.

    Raises:
        RecipeError: The task lacks a metric or a filter, or the metric is no mean over items that rises.
    """
    key = f"exams.{config.name}.metrics"
    for written in config.metrics:
        metric, comma, chosen = written.partition(",")
        fit = [name for name, kind in told.metrics.items() if all(kind)]
        if metric not in told.metrics:
            raise RecipeError(
                f"{key}: task {told.task} has no metric {metric!r}.{did_you_mean(metric, fit)} It has "
                f"{', '.join(sorted(told.metrics))}."
            )
        if metric not in fit:
            by_items, _ = told.metrics[metric]
            why = "better when it falls, and gates ask for what rises" if by_items else "made of all items together"
            instead = f"Take {' or '.join(fit)}" if fit else "Take another task"
            raise RecipeError(f"{key}: {metric} of task {told.task} is {why}, and reports hold items. {instead}.")
        named = [f"{metric},{name}" for name in told.filters]
        if comma and chosen not in told.filters:
            raise RecipeError(f"{key}: task {told.task} has no filter {chosen!r}. Write {' or '.join(named)}.")
        if not comma and len(named) > 1:
            raise RecipeError(f"{key}: task {told.task} has several filters. Write {' or '.join(named)}.")


def find_task_files(config: LmEvalConfig) -> list[Path]:
    """Return the files of the tasks that a recipe's name or path stands for.

    Raises:
        SourceError: There is no such file or folder.
        NotFoundError: The harness has no such task.
    """
    if config.include_path is not None and not config.include_path.is_dir():
        raise SourceError(
            f"exams.{config.name}.include_path: there is no folder {config.include_path}. Give one that is there."
        )
    if config.is_file:
        path = Path(config.task)
        if not limits.is_file(path):
            raise SourceError(f"exams.{config.name}.task: {limits.why_not_a_file(path)}. Give the YAML file of a task.")
        return _below(config, path)
    own = _index(config.include_path) if config.include_path else {}
    known = own if config.task in own else _built_in()
    if config.task not in known:
        raise _unknown(config, {*own, *known})
    return [Path(str(known[name]["path"])) for name in _members(config.task, known)]


def _below(config: LmEvalConfig, path: Path) -> list[Path]:
    """Return a task's own file; for a group's file, those of its members."""
    content = _content(config, path)
    if "group" not in content and "task" not in content:
        raise RecipeError(f"exams.{config.name}.task: {path} names no task. Give the YAML file of a task or a group.")
    if "group" not in content:
        return [path]
    known = {**_built_in(), **_index(path.parent)}
    names = [each for each in content.get("task") or () if isinstance(each, str)]
    for name in names:
        if name not in known:
            raise _unknown(config.model_copy(update={"task": name}), known)
    return [Path(str(known[name]["path"])) for each in names for name in _members(each, known)]


def _content(config: LmEvalConfig, path: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return dict(load_yaml(path, resolve_func=False))
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise RecipeError(f"exams.{config.name}.task: {path} is no task's file: {reason}. Mend it.") from error


def _unknown(config: LmEvalConfig, known: Iterable[str]) -> NotFoundError:
    near = get_close_matches(config.task, sorted(known), n=4, cutoff=0.5)
    told = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return NotFoundError(
        f"exams.{config.name}.task: lm_eval {version('lm_eval')} has no task {config.task!r}.{told} `lm-eval ls tasks` "
        "lists all; a task of your own is named by the path of its YAML file."
    )


def _members(name: str, known: dict[str, dict[str, Any]], seen: frozenset[str] = frozenset()) -> list[str]:
    """Return the tasks behind a task, a group or a tag."""
    entry = known.get(name)
    if entry is None or name in seen:
        return []
    if entry["members"] is None:
        return [name]
    return [task for each in entry["members"] for task in _members(each, known, seen | {name})]


def _built_in() -> dict[str, dict[str, Any]]:
    """Return the index of the harness' own tasks; it reads thousands of files, so it is kept by version."""
    path = state.folder("lm_eval") / f"{version('lm_eval')}.json"
    if not path.is_file():
        import lm_eval.tasks

        filesystem.write_atomic(path, json.dumps(_index(Path(lm_eval.tasks.__file__).parent)))
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    if any(entry["path"] and not Path(entry["path"]).is_file() for entry in found.values()):
        path.unlink()  # another environment's
        return _built_in()
    return found


def _index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return each name below a folder with its file, and its members where it is a group or a tag."""
    from lm_eval.tasks._index import Kind, TaskIndex

    found = {}
    for name, entry in TaskIndex.build([folder]).items():
        members: list[str] | None = None
        if entry.kind is Kind.TAG:
            members = sorted(entry.tags)
        elif entry.kind is Kind.GROUP:
            listed = (entry.cfg or {}).get("task") or []
            members = [each if isinstance(each, str) else each.get("task") or each.get("group") for each in listed]
        found[name] = {"path": str(entry.yaml_path) if entry.yaml_path else None, "members": members}
    return found


def _told_by(path: Path) -> TaskMetrics | None:
    """Read from a task's file what its metrics are; a task that is a Python class tells when it is loaded."""
    from lm_eval.api import metrics as _registered  # noqa: F401  the metrics register when they are imported
    from lm_eval.api import registry
    from lm_eval.tasks._yaml_loader import load_yaml

    content = load_yaml(path, resolve_func=False)
    if "class" in content:
        return None
    listed = content.get("metric_list") or [
        {"metric": name} for name in registry.DEFAULT_METRIC_REGISTRY[content.get("output_type", "generate_until")]
    ]
    mean = registry.get_aggregation("mean")
    metrics = {}
    for each in listed:
        name = str(each["metric"]).rpartition(".")[2]
        by_items = each["aggregation"] == "mean" if "aggregation" in each else _aggregate(name) is mean
        rises = each.get("higher_is_better", registry.HIGHER_IS_BETTER_REGISTRY.get(name, True))
        metrics[name] = (by_items, bool(rises))
    filters = [each["name"] for each in content.get("filter_list") or ()]
    return TaskMetrics(str(content.get("task")), metrics, filters or [NO_FILTER])


def _aggregate(metric: str) -> Any:
    from lm_eval.api import registry

    return registry.METRIC_AGGREGATION_REGISTRY.get(metric, None)
