"""lm-evaluation-harness tasks in a recipe (Gao et al. 2024, doi:10.5281/zenodo.12608602), like HellaSwag or GSM8K.

The task's YAML file lists its metrics and filters, so a recipe is validated before any data are downloaded. The harness
is imported inside functions.
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
"""Name that the harness gives to the filter of a task without filters."""


class LmEvalConfig(Config):
    """A task of lm-evaluation-harness. Requires the extra `lm-eval`."""

    engine: Literal["lm_eval"]
    """Evaluation engine."""

    name: PlainName
    """Prefix of the task's metrics in reports."""

    task: str
    """Name of a harness task, group or tag, like `hellaswag`, or the path of a task's YAML file, relative to the recipe
    file. Data files named in a custom task file are relative to it."""

    include_path: LocalPath | None = None
    """Folder with custom tasks that `task` can name, relative to the recipe file."""

    metrics: list[str] = Field(min_length=1)
    """Metrics of the task, like `acc_norm`. If the task has several filters, `metric,filter`, like
    `exact_match,strict-match`."""

    num_fewshot: int | None = Field(None, ge=0, le=1000)
    """Number of few-shot examples. If omitted, the task's default."""

    fewshot_random_seed: int = Field(1234, ge=0, le=MAX_SEED)
    """Random seed for sampling few-shot examples. The default is the harness's own."""

    limit: int | None = Field(None, ge=5, le=MAX_ROWS)
    """Maximum number of items per task, the first ones. If omitted, all items."""

    apply_chat_template: bool = False
    """Format requests with the model's chat template. Few-shot examples become conversation turns."""

    batch_size: int = Field(8, ge=1, le=MAX_BATCH_SIZE)
    """Requests per batch. Affects speed, not results."""

    def columns(self) -> list[str]:
        """Return the metric names used in reports and gates, without the task's prefix."""
        return [column_name(metric) for metric in self.metrics]

    @property
    def is_file(self) -> bool:
        """Whether `task` is the path of a file."""
        return Path(self.task).suffix in (".yaml", ".yml")

    @model_validator(mode="after")
    def _metrics_are_unique(self) -> "LmEvalConfig":
        if len(set(self.columns())) < len(self.metrics):
            raise ValueError(f"exams.{self.name}.metrics: a metric is listed twice. Remove one.")
        return self


def column_name(metric: str) -> str:
    """Return the report's name of `metric,filter`. MLflow does not allow commas."""
    return metric.replace(",", "_")


@dataclass(frozen=True)
class TaskMetrics:
    """Metrics and filters of a task."""

    task: str
    metrics: dict[str, tuple[bool, bool]]
    """Metric -> (the score is the mean over items, higher is better)."""

    filters: list[str]


def check(config: LmEvalConfig) -> None:
    """Check that the harness is installed, that the task exists, and that it has the metrics.

    Raises:
        SourceError: The harness is not installed, or a file does not exist.
        NotFoundError: The harness does not have the task.
        RecipeError: The task does not have a metric.
    """
    check_installed(config)
    for path in find_task_files(config):
        if (task := _read_metrics(path)) is not None:
            check_metrics(config, task)


def check_installed(config: LmEvalConfig) -> None:
    """Check that lm-evaluation-harness is installed.

    Raises:
        SourceError: It is not installed.
    """
    if find_spec("lm_eval") is None:
        raise SourceError(
            f"exams.{config.name}.engine: lm_eval is not installed. Install tuneline[lm-eval], or remove the entry."
        )


def check_metrics(config: LmEvalConfig, task: TaskMetrics) -> None:
    """Check that a report can contain the task's metrics that the recipe names.

    Raises:
        RecipeError: The task does not have a metric or filter, or a metric is not a mean over items for which higher is
            better.
    """
    key = f"exams.{config.name}.metrics"
    for entry in config.metrics:
        metric, comma, chosen_filter = entry.partition(",")
        supported = [name for name, properties in task.metrics.items() if all(properties)]
        if metric not in task.metrics:
            raise RecipeError(
                f"{key}: task {task.task} has no metric {metric!r}.{did_you_mean(metric, supported)} Known: "
                f"{', '.join(sorted(task.metrics))}."
            )
        if metric not in supported:
            is_mean, _ = task.metrics[metric]
            problem = "lower is better" if is_mean else "it is not a mean over items"
            fix = f"Set {' or '.join(supported)}" if supported else "Set another task"
            raise RecipeError(f"{key}: {metric} of task {task.task} is not supported, because {problem}. {fix}.")
        options = [f"{metric},{name}" for name in task.filters]
        if comma and chosen_filter not in task.filters:
            raise RecipeError(f"{key}: task {task.task} has no filter {chosen_filter!r}. Set {' or '.join(options)}.")
        if not comma and len(options) > 1:
            raise RecipeError(f"{key}: task {task.task} has several filters. Set {' or '.join(options)}.")


def find_task_files(config: LmEvalConfig) -> list[Path]:
    """Return the YAML files of the tasks that a recipe entry selects.

    Raises:
        SourceError: The file or folder does not exist.
        NotFoundError: The harness does not have the task.
    """
    if config.include_path is not None and not config.include_path.is_dir():
        raise SourceError(
            f"exams.{config.name}.include_path: folder {config.include_path} does not exist. Correct the path."
        )
    if config.is_file:
        path = Path(config.task)
        if not limits.is_file(path):
            raise SourceError(f"exams.{config.name}.task: {limits.why_not_a_file(path)}. Set the YAML file of a task.")
        return _files_in(config, path)
    custom = _index(config.include_path) if config.include_path else {}
    known = custom if config.task in custom else _built_in()
    if config.task not in known:
        raise _unknown_task(config, {*custom, *known})
    return [Path(str(known[name]["path"])) for name in _members(config.task, known)]


def _files_in(config: LmEvalConfig, path: Path) -> list[Path]:
    """Return a task's own file; for a group, the files of its members."""
    content = _content(config, path)
    if "group" not in content and "task" not in content:
        raise RecipeError(
            f"exams.{config.name}.task: {path} defines neither a task nor a group. Set the YAML file of one."
        )
    if "group" not in content:
        return [path]
    known = {**_built_in(), **_index(path.parent)}
    names = [member for member in content.get("task") or () if isinstance(member, str)]
    for name in names:
        if name not in known:
            raise _unknown_task(config.model_copy(update={"task": name}), known)
    return [Path(str(known[task]["path"])) for name in names for task in _members(name, known)]


def _content(config: LmEvalConfig, path: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return dict(load_yaml(path, resolve_func=False))
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise RecipeError(
            f"exams.{config.name}.task: {path} is not a valid task file: {reason}. Correct it."
        ) from error


def _unknown_task(config: LmEvalConfig, known: Iterable[str]) -> NotFoundError:
    matches = get_close_matches(config.task, sorted(known), n=4, cutoff=0.5)
    suggestion = f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""
    return NotFoundError(
        f"exams.{config.name}.task: lm_eval {version('lm_eval')} has no task {config.task!r}.{suggestion} `lm-eval ls "
        "tasks` lists all tasks; for a custom task, set the path of its YAML file."
    )


def _members(name: str, known: dict[str, dict[str, Any]], seen: frozenset[str] = frozenset()) -> list[str]:
    """Return the tasks of a task, group or tag."""
    entry = known.get(name)
    if entry is None or name in seen:
        return []
    if entry["members"] is None:
        return [name]
    return [task for member in entry["members"] for task in _members(member, known, seen | {name})]


def _built_in() -> dict[str, dict[str, Any]]:
    """Return the index of the harness's built-in tasks.

    It is cached per harness version because building it reads thousands of files.
    """
    path = state.folder("lm_eval") / f"{version('lm_eval')}.json"
    if not path.is_file():
        import lm_eval.tasks

        filesystem.write_atomic(path, json.dumps(_index(Path(lm_eval.tasks.__file__).parent)))
    index: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    if any(entry["path"] and not Path(entry["path"]).is_file() for entry in index.values()):
        path.unlink()  # written by another Python environment
        return _built_in()
    return index


def _index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return each task name below a folder with its file, and its members if it is a group or a tag."""
    from lm_eval.tasks._index import Kind, TaskIndex

    index = {}
    for name, entry in TaskIndex.build([folder]).items():
        members: list[str] | None = None
        if entry.kind is Kind.TAG:
            members = sorted(entry.tags)
        elif entry.kind is Kind.GROUP:
            tasks = (entry.cfg or {}).get("task") or []
            members = [task if isinstance(task, str) else task.get("task") or task.get("group") for task in tasks]
        index[name] = {"path": str(entry.yaml_path) if entry.yaml_path else None, "members": members}
    return index


def _read_metrics(path: Path) -> TaskMetrics | None:
    """Read a task's metrics from its file. Returns None for a Python class, whose metrics are known after loading."""
    from lm_eval.api import metrics as _registered  # noqa: F401  importing registers the metrics
    from lm_eval.api import registry
    from lm_eval.tasks._yaml_loader import load_yaml

    content = load_yaml(path, resolve_func=False)
    if "class" in content:
        return None
    metric_list = content.get("metric_list") or [
        {"metric": name} for name in registry.DEFAULT_METRIC_REGISTRY[content.get("output_type", "generate_until")]
    ]
    mean = registry.get_aggregation("mean")
    metrics = {}
    for entry in metric_list:
        name = str(entry["metric"]).rpartition(".")[2]
        is_mean = entry["aggregation"] == "mean" if "aggregation" in entry else _aggregation(name) is mean
        higher_is_better = entry.get("higher_is_better", registry.HIGHER_IS_BETTER_REGISTRY.get(name, True))
        metrics[name] = (is_mean, bool(higher_is_better))
    filters = [entry["name"] for entry in content.get("filter_list") or ()]
    return TaskMetrics(str(content.get("task")), metrics, filters or [NO_FILTER])


def _aggregation(metric: str) -> Any:
    from lm_eval.api import registry

    return registry.METRIC_AGGREGATION_REGISTRY.get(metric, None)
