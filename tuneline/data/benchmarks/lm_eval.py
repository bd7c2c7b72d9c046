"""Tasks of lm-evaluation-harness as data: loaded with what the recipe sets, known by their content.

A task's identity is its config, the files of the functions in it, and every document that it asks or shows solved;
where its data lie is no part of it. `resolve` writes the documents under the state root, to be looked for in the
training rows; a task whose config or data changed since then is refused.
"""

import functools
import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tuneline import checksums, state
from tuneline.config.sections import lm_eval
from tuneline.config.sections.lm_eval import LmEvalConfig, TaskMetrics
from tuneline.data import ngrams
from tuneline.data.ingest import hub
from tuneline.errors import RecipeError, SourceError
from tuneline.identity import Located, digest, file_entries, sha256_of

TASKS_FILE, ITEMS = "tasks.json", "items.jsonl"
LOCATION_KEYS = ("data_files", "data_dir", "cache_dir", "config_source")
"""Keys of a config that say where things lie; documents are hashed themselves."""

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_COMMIT = re.compile(r"@([0-9a-f]{40})/")


@dataclass(frozen=True)
class Document:
    """One document of a task."""

    number: int
    """Its place in the task's split."""

    id: str
    """Hash of the task's name and the content; of equal documents, of how many came before, too."""

    content: Any


def load_tasks(config: LmEvalConfig) -> list[Any]:
    """Return the tasks (`lm_eval.api.task.Task`) behind a recipe's entry, with what the recipe sets.

    Raises:
        SourceError: The harness or the data of a task are not there.
        NotFoundError: The harness has no such task.
        RecipeError: A task lacks a metric, takes no solved items, wants images, or runs code that models write.
    """
    lm_eval.check_installed(config)
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    tasks = []
    for path in lm_eval.find_task_files(config):
        content = load_yaml(path)
        _make_data_files_absolute(config, content, path.parent)
        shadow = _ask_the_hub_alone(content)
        try:
            found = TaskManager(include_defaults=False).load([content])["tasks"]
        except Exception as error:
            reason = " ".join(f"{error}".split())[:300].rstrip(".")
            raise SourceError(
                f"exams.{config.name}.task: task {content.get('task')} of {path} cannot be loaded: "
                f"{type(error).__name__}: {reason}. Are its data there, and its file in order? Data of the hub need a "
                f"network, or HF_DATASETS_CACHE with a copy.{shadow}"
            ) from error
        tasks += [_set(config, task) for task in found.values()]
    return tasks


def _make_data_files_absolute(config: LmEvalConfig, content: dict[str, Any], base: Path) -> None:
    """Read data files relative to the task's file, as recipes do; the harness would take the working directory."""
    told = content.get("dataset_kwargs") or {}
    files = told.get("data_files")
    if files is None or content.get("dataset_path") not in ("json", "csv", "parquet", "text", "arrow"):
        return

    def absolute(name: Any) -> Any:
        if isinstance(name, list):
            return [absolute(each) for each in name]
        if "://" in str(name):
            return name
        path = (base / str(name)).resolve()
        if not path.is_file() and not list(base.glob(str(name)) if not Path(str(name)).is_absolute() else ()):
            raise SourceError(
                f"exams.{config.name}.task: task {content.get('task')} names the data file {name!r}, and there is no "
                f"{path}. Put it there, or correct dataset_kwargs.data_files; paths are relative to the task's file."
            )
        return str(path)

    made = {split: absolute(name) for split, name in files.items()} if isinstance(files, dict) else absolute(files)
    content["dataset_kwargs"] = {**told, "data_files": made, "cache_dir": str(state.folder("datasets"))}


def _ask_the_hub_alone(content: dict[str, Any]) -> str:
    """Read a set of the hub's from the hub where a local folder has its name; return what to say if that fails."""
    name = content.get("dataset_path")
    if not isinstance(name, str) or not _HUB_NAME.fullmatch(name) or not Path(name).is_dir():
        return ""
    content["dataset_path"] = f"{hub.HUB_PREFIX}{name}"
    return f" The local folder {name} is not read: dataset_path {name!r} names a set of the hub. Write ./{name} for it."


def _set(config: LmEvalConfig, task: Any) -> Any:
    """Give a task what the recipe sets, and check what only the loaded task tells."""
    name, key = task.task_name, f"exams.{config.name}"
    if getattr(task, "UNSAFE_CODE", False):
        raise RecipeError(f"{key}.task: {name} runs code that models write, which is not done here. Leave it out.")
    if getattr(task, "MULTIMODAL", False):
        raise RecipeError(f"{key}.task: {name} shows images or sounds, and models here read text. Leave it out.")
    written = task.get_config("num_fewshot")
    if written == 0 and config.num_fewshot:
        raise RecipeError(
            f"{key}.num_fewshot: task {name} is made for 0 solved items, which its file fixes. Leave num_fewshot out."
        )
    wanted = config.num_fewshot if config.num_fewshot is not None else written or 0
    task.set_config(key="num_fewshot", value=wanted)
    task.set_fewshot_seed(seed=config.fewshot_random_seed)
    lm_eval.check_metrics(config, task_metrics(task))
    return task


def task_metrics(task: Any) -> TaskMetrics:
    """Return what a loaded task's metrics are."""
    from lm_eval.api.registry import get_aggregation

    mean, rises = get_aggregation("mean"), task.higher_is_better()
    metrics = {name: (how is mean, bool(rises.get(name, True))) for name, how in task.aggregation().items()}
    filters = [each["name"] for each in task.get_config("filter_list") or ()]
    return TaskMetrics(task.task_name, metrics, filters or [lm_eval.NO_FILTER])


def iter_documents(task: Any) -> Iterator[Document]:
    """Yield the documents that a task asks, in order."""
    seen: Counter[str] = Counter()
    for number, content in enumerate(task.eval_docs):
        text = _json(content)
        yield Document(
            number, digest([task.task_name, text, seen[text]] if seen[text] else [task.task_name, text]), content
        )
        seen[text] += 1


def task_identity(task: Any) -> str:
    """Return the hash of a task's config, of its functions' files, and of all documents that it asks or shows."""
    hashed = hashlib.sha256()
    for docs in (task.eval_docs, task.fewshot_docs() if task.get_config("num_fewshot") else ()):
        for doc in docs or ():
            hashed.update(_json(doc).encode() + b"\n")
        hashed.update(b"\0")
    return digest([version("lm_eval"), _plain(task.config), hashed.hexdigest()])


def _json(doc: Any) -> str:
    return json.dumps(doc, sort_keys=True, ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    """Write a config as values whose hash is the same on every machine: functions by the bytes of their files."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items() if key not in LOCATION_KEYS}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in (sorted(value, key=str) if isinstance(value, set) else value)]
    if isinstance(value, functools.partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if callable(value):
        file = inspect.getsourcefile(value if inspect.isroutine(value) or isinstance(value, type) else type(value))
        return [getattr(value, "__qualname__", type(value).__qualname__), sha256_of(Path(file)) if file else ""]
    if isinstance(value, str):
        return value.removeprefix(hub.HUB_PREFIX)
    return value if isinstance(value, int | float | bool | None) else str(value)


def locate_tasks(config: LmEvalConfig) -> Located:
    """Load the tasks, write their documents under the state root, and return them as a benchmark.

    Raises:
        SourceError: The harness or the data of a task are not there.
        NotFoundError: The harness has no such task.
        RecipeError: A task lacks a metric, or cannot be asked here.
    """
    tasks = load_tasks(config)
    told = {task.task_name: task_identity(task) for task in tasks}
    folder = state.folder("exams") / f"lm_eval-{digest(told)[:16]}"
    with state.lock(f"exams-{folder.name}"):
        if not checksums.is_usable_copy(folder) or not (folder / TASKS_FILE).is_file():
            folder.mkdir(exist_ok=True)
            with (folder / ITEMS).open("w", encoding="utf-8") as file:
                for task in tasks:
                    file.writelines(
                        _json({"id": doc.id, "text": _said(task, doc.content)}) + "\n" for doc in iter_documents(task)
                    )
            (folder / TASKS_FILE).write_text(json.dumps(told, sort_keys=True), encoding="utf-8")
            checksums.write_for_copy(folder, folder)
    source = f"lm_eval {version('lm_eval')}: {', '.join(map(_origin, tasks))}"
    files = file_entries(folder, [folder / TASKS_FILE, folder / ITEMS])
    return Located(name=config.name, location=str(folder), source=source, files=files)


def _origin(task: Any) -> str:
    """Say where a task's data came from: the repository on the hub and its commit, or the kind of file."""
    place = f"{task.task_name} from {str(task.get_config('dataset_path')).removeprefix(hub.HUB_PREFIX)}"
    splits = task.dataset.values() if isinstance(task.dataset, dict) else ()
    urls = (url for split in splits for url in getattr(split.info, "download_checksums", None) or ())
    commit = next((match[1] for url in urls if (match := _COMMIT.search(url))), "")
    return f"{place}@{commit}" if commit else place


def _said(task: Any, doc: Any) -> str:
    """Return what is looked for in training rows: what the task names for that, or its question, with short choices."""
    if task.get_config("should_decontaminate"):
        return str(task.doc_to_decontamination_query(doc))
    asked = task.doc_to_text(doc)
    choices = task.doc_to_choice(doc) if task.get_config("doc_to_choice") is not None else []
    text = asked if isinstance(asked, str) else ""
    return text if len(text.split()) >= ngrams.MIN_QUESTION_WORDS else " ".join([text, *map(str, choices)])


def is_lm_eval_benchmark(found: Located) -> bool:
    """Tell whether a benchmark is one of the harness'."""
    return any(file.name == TASKS_FILE for file in found.files)


def read_document_texts(found: Located) -> list[tuple[str, str]]:
    """Return the id and the text of each document, to be looked for in training rows."""
    lines = (Path(found.location) / ITEMS).read_text(encoding="utf-8").split("\n")
    rows: Iterable[dict[str, str]] = (json.loads(line) for line in lines if line)
    return [(row["id"], row["text"]) for row in rows]


def load_resolved_tasks(config: LmEvalConfig, found: Located) -> list[Any]:
    """Load the tasks that `resolve` found.

    Raises:
        SourceError: A task's config, functions or data are others by now.
    """
    told = json.loads((Path(found.location) / TASKS_FILE).read_text(encoding="utf-8"))
    tasks = load_tasks(config)
    for task in tasks:
        if told.get(task.task_name) != task_identity(task):
            raise SourceError(
                f"exams.{config.name}: task {task.task_name} changed since the run began: its file, functions or data, "
                f"or the harness, which is {version('lm_eval')} now. Start the run again."
            )
    return tasks
