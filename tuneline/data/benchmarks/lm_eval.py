"""Tasks of lm-evaluation-harness: loaded with the settings of the recipe and identified by their content.

The identity of a task covers its config, the source files of the functions in it, and every test and few-shot document;
it does not depend on the location of the data. `resolve` writes the documents under the state root for the
contamination check; a task whose config or data changed since then is refused.
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

TASKS_FILE, DOCUMENTS_FILE = "tasks.json", "items.jsonl"
LOCATION_KEYS = ("data_files", "data_dir", "cache_dir", "config_source")
"""Keys of a task config that hold locations; they are not part of the identity, because the documents are."""

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_COMMIT = re.compile(r"@([0-9a-f]{40})/")


@dataclass(frozen=True)
class Document:
    """One document of a task."""

    number: int
    """Position in the task's split."""

    id: str
    """Hash of the task's name and the content, and of the number of equal documents before it."""

    content: Any


def load_tasks(config: LmEvalConfig) -> list[Any]:
    """Return the tasks (`lm_eval.api.task.Task`) of a recipe's entry, with the settings of the recipe.

    Raises:
        SourceError: lm_eval is not installed, or the data of a task cannot be loaded.
        NotFoundError: lm_eval has no such task.
        RecipeError: A task lacks a metric, does not support few-shot examples, needs images or audio, or runs code that
            models generate.
    """
    lm_eval.check_installed(config)
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    tasks = []
    for path in lm_eval.find_task_files(config):
        content = load_yaml(path)
        _make_data_files_absolute(config, content, path.parent)
        shadow = _prefer_hub(content)
        try:
            loaded = TaskManager(include_defaults=False).load([content])["tasks"]
        except Exception as error:
            reason = " ".join(f"{error}".split())[:300].rstrip(".")
            raise SourceError(
                f"exams.{config.name}.task: task {content.get('task')} of {path} cannot be loaded: "
                f"{type(error).__name__}: {reason}. Check its file and its data. Data on the Hub need a network "
                f"connection, or HF_DATASETS_CACHE with a copy.{shadow}"
            ) from error
        tasks += [_configure(config, task) for task in loaded.values()]
    return tasks


def _make_data_files_absolute(config: LmEvalConfig, content: dict[str, Any], base: Path) -> None:
    """Resolve data files relative to the task's file, as recipes do; lm_eval would use the working directory."""
    kwargs = content.get("dataset_kwargs") or {}
    files = kwargs.get("data_files")
    if files is None or content.get("dataset_path") not in ("json", "csv", "parquet", "text", "arrow"):
        return

    def absolute(name: Any) -> Any:
        if isinstance(name, list):
            return [absolute(entry) for entry in name]
        if "://" in str(name):
            return name
        path = (base / str(name)).resolve()
        if not path.is_file() and not list(base.glob(str(name)) if not Path(str(name)).is_absolute() else ()):
            raise SourceError(
                f"exams.{config.name}.task: data file {name!r} of task {content.get('task')} not found: {path}. "
                "Add it, or correct dataset_kwargs.data_files; paths are relative to the task's file."
            )
        return str(path)

    resolved = {split: absolute(name) for split, name in files.items()} if isinstance(files, dict) else absolute(files)
    content["dataset_kwargs"] = {**kwargs, "data_files": resolved, "cache_dir": str(state.folder("datasets"))}


def _prefer_hub(content: dict[str, Any]) -> str:
    """Read a Hub dataset from the Hub even if a local folder has its name; return a hint for the error message."""
    name = content.get("dataset_path")
    if not isinstance(name, str) or not _HUB_NAME.fullmatch(name) or not Path(name).is_dir():
        return ""
    content["dataset_path"] = f"{hub.HUB_PREFIX}{name}"
    return (
        f" dataset_path {name!r} is a dataset on the Hub; the local folder {name} is not read. Write ./{name} to read "
        "it."
    )


def _configure(config: LmEvalConfig, task: Any) -> Any:
    """Apply the settings of the recipe to a task, and check what is known only after loading."""
    name, key = task.task_name, f"exams.{config.name}"
    if getattr(task, "UNSAFE_CODE", False):
        raise RecipeError(f"{key}.task: {name} runs code that models generate, which is not supported. Remove it.")
    if getattr(task, "MULTIMODAL", False):
        raise RecipeError(f"{key}.task: {name} needs images or audio, but only text is supported. Remove it.")
    default = task.get_config("num_fewshot")
    if default == 0 and config.num_fewshot:
        raise RecipeError(f"{key}.num_fewshot: the file of task {name} fixes it to 0. Remove num_fewshot.")
    num_fewshot = config.num_fewshot if config.num_fewshot is not None else default or 0
    task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=config.fewshot_random_seed)
    lm_eval.check_metrics(config, task_metrics(task))
    return task


def task_metrics(task: Any) -> TaskMetrics:
    """Return the metrics and filters of a loaded task."""
    from lm_eval.api.registry import get_aggregation

    mean, higher_is_better = get_aggregation("mean"), task.higher_is_better()
    metrics = {
        name: (aggregation is mean, bool(higher_is_better.get(name, True)))
        for name, aggregation in task.aggregation().items()
    }
    filters = [entry["name"] for entry in task.get_config("filter_list") or ()]
    return TaskMetrics(task.task_name, metrics, filters or [lm_eval.NO_FILTER])


def iter_documents(task: Any) -> Iterator[Document]:
    """Yield the test documents of a task in order."""
    counts: Counter[str] = Counter()
    for number, content in enumerate(task.eval_docs):
        text = _json(content)
        key = [task.task_name, text, counts[text]] if counts[text] else [task.task_name, text]
        yield Document(number, digest(key), content)
        counts[text] += 1


def task_identity(task: Any) -> str:
    """Return the hash of a task's config, of its functions' files, and of all test and few-shot documents."""
    documents = hashlib.sha256()
    for docs in (task.eval_docs, task.fewshot_docs() if task.get_config("num_fewshot") else ()):
        for doc in docs or ():
            documents.update(_json(doc).encode() + b"\n")
        documents.update(b"\0")
    return digest([version("lm_eval"), _canonical(task.config), documents.hexdigest()])


def _json(doc: Any) -> str:
    return json.dumps(doc, sort_keys=True, ensure_ascii=False, default=str)


def _canonical(value: Any) -> Any:
    """Convert a config to values that hash equally on every machine; functions become the hash of their file."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _canonical(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _canonical(entry) for key, entry in value.items() if key not in LOCATION_KEYS}
    if isinstance(value, list | tuple | set):
        return [_canonical(entry) for entry in (sorted(value, key=str) if isinstance(value, set) else value)]
    if isinstance(value, functools.partial):
        return [_canonical(value.func), _canonical(value.args), _canonical(value.keywords)]
    if callable(value):
        file = inspect.getsourcefile(value if inspect.isroutine(value) or isinstance(value, type) else type(value))
        return [getattr(value, "__qualname__", type(value).__qualname__), sha256_of(Path(file)) if file else ""]
    if isinstance(value, str):
        return value.removeprefix(hub.HUB_PREFIX)
    return value if isinstance(value, int | float | bool | None) else str(value)


def locate_tasks(config: LmEvalConfig) -> Located:
    """Load the tasks, write their documents under the state root, and return them as a located benchmark.

    Raises:
        SourceError: lm_eval is not installed, or the data of a task cannot be loaded.
        NotFoundError: lm_eval has no such task.
        RecipeError: A task lacks a metric, or is not supported.
    """
    tasks = load_tasks(config)
    identities = {task.task_name: task_identity(task) for task in tasks}
    folder = state.folder("exams") / f"lm_eval-{digest(identities)[:16]}"
    with state.lock(f"exams-{folder.name}"):
        if not checksums.is_usable_copy(folder) or not (folder / TASKS_FILE).is_file():
            folder.mkdir(exist_ok=True)
            with (folder / DOCUMENTS_FILE).open("w", encoding="utf-8") as file:
                for task in tasks:
                    file.writelines(
                        _json({"id": document.id, "text": _compared_text(task, document.content)}) + "\n"
                        for document in iter_documents(task)
                    )
            (folder / TASKS_FILE).write_text(json.dumps(identities, sort_keys=True), encoding="utf-8")
            checksums.write_for_copy(folder, folder)
    source = f"lm_eval {version('lm_eval')}: {', '.join(map(_origin, tasks))}"
    files = file_entries(folder, [folder / TASKS_FILE, folder / DOCUMENTS_FILE])
    return Located(name=config.name, location=str(folder), source=source, files=files)


def _origin(task: Any) -> str:
    """Return the origin of a task's data: the repository on the Hub and its commit, or the kind of file."""
    origin = f"{task.task_name} from {str(task.get_config('dataset_path')).removeprefix(hub.HUB_PREFIX)}"
    splits = task.dataset.values() if isinstance(task.dataset, dict) else ()
    urls = (url for split in splits for url in getattr(split.info, "download_checksums", None) or ())
    commit = next((match[1] for url in urls if (match := _COMMIT.search(url))), "")
    return f"{origin}@{commit}" if commit else origin


def _compared_text(task: Any, doc: Any) -> str:
    """Return the text for the contamination check: the task's decontamination query, or its question.

    A short question is followed by its choices.
    """
    if task.get_config("should_decontaminate"):
        return str(task.doc_to_decontamination_query(doc))
    question = task.doc_to_text(doc)
    choices = task.doc_to_choice(doc) if task.get_config("doc_to_choice") is not None else []
    text = question if isinstance(question, str) else ""
    return text if len(text.split()) >= ngrams.MIN_QUESTION_WORDS else " ".join([text, *map(str, choices)])


def is_lm_eval_benchmark(located: Located) -> bool:
    """Return whether a located benchmark consists of lm_eval tasks."""
    return any(file.name == TASKS_FILE for file in located.files)


def read_document_texts(located: Located) -> list[tuple[str, str]]:
    """Return the id and the text of each document, for the contamination check."""
    lines = (Path(located.location) / DOCUMENTS_FILE).read_text(encoding="utf-8").split("\n")
    rows: Iterable[dict[str, str]] = (json.loads(line) for line in lines if line)
    return [(row["id"], row["text"]) for row in rows]


def load_resolved_tasks(config: LmEvalConfig, located: Located) -> list[Any]:
    """Load the tasks that the step `resolve` located.

    Raises:
        SourceError: The config, the functions or the data of a task changed.
    """
    identities = json.loads((Path(located.location) / TASKS_FILE).read_text(encoding="utf-8"))
    tasks = load_tasks(config)
    for task in tasks:
        if identities.get(task.task_name) != task_identity(task):
            raise SourceError(
                f"exams.{config.name}: task {task.task_name} changed since the run began: its file, functions or "
                f"data, or lm_eval, which is now {version('lm_eval')}. Start the run again."
            )
    return tasks
