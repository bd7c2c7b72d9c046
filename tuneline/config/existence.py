"""Check that files, models and packages named in a recipe exist, without reading files or importing heavy libraries."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from tuneline import limits
from tuneline.config.datasets import data_files
from tuneline.config.datasets.data_files import DataFiles
from tuneline.config.recipe import Recipe
from tuneline.config.sections import exams, lm_eval
from tuneline.config.sections.evaluate import METRICS_KEY, REQUIRED_PACKAGES
from tuneline.config.sections.exams import ExamConfig
from tuneline.config.sections.export import ExportRecipe, ExportSource
from tuneline.config.sections.lm_eval import LmEvalConfig
from tuneline.config.sections.load import ModelLoadOptions
from tuneline.config.sections.model import CatalogueModel, DirectoryModel, GgufModel, ModelSource, catalogue_entry
from tuneline.config.sections.sources import SourceConfig
from tuneline.config.stages import RunRecipe
from tuneline.config.validation import user_code
from tuneline.errors import NotFoundError, SourceError, TunelineError

ADAPTER_CONFIGS = ("adapter_config.json", "bottleneck_config.json")
"""Config files that identify an adapter folder: those of peft and of Tuneline's bottleneck adapters."""

TEMPLATES_FOLDER = Path(__file__).parents[1] / "data" / "chat_template" / "templates"


def check(recipe: RunRecipe) -> None:
    """Check that everything the recipe names exists.

    Raises:
        SourceError: Something is missing. One line per missing item.
    """
    if problems := find_missing(recipe):
        raise SourceError("\n".join(problems))


def find_missing(recipe: RunRecipe) -> list[str]:
    """Return one error message per missing file, model, template or package."""
    problems = []
    for check in _export_checks(recipe) if isinstance(recipe, ExportRecipe) else _training_checks(recipe):
        try:
            check()
        except TunelineError as error:
            problems.append(str(error))
    return problems


def _export_checks(recipe: ExportRecipe) -> list[Callable[[], None]]:
    options = ModelLoadOptions(trust_remote_code=recipe.trust_remote_code, allow_pickle=recipe.allow_pickle)
    return [
        lambda: check_model(recipe.model, options),
        *(lambda path=path: check_adapter(path, "adapters") for path in recipe.adapters),  # type: ignore[misc]
        lambda: check_template(recipe.template),
    ]


def _training_checks(recipe: Recipe) -> list[Callable[[], None]]:
    return [
        *(lambda source=source: check_source(source) for source in recipe.unique_sources()),
        *(lambda exam=exam: check_exam(exam) for exam in recipe.exams),
        lambda: check_model(recipe.model, recipe.load),
        *(lambda adapter=adapter: check_adapter(adapter.path) for adapter in recipe.load.adapters),
        lambda: check_reward_function(recipe),
        lambda: check_template(recipe.template),
        *(lambda name=name: check_metric(name) for name in recipe.evaluate.metrics),
    ]


def check_source(source: SourceConfig) -> None:
    """Check that a dataset's local files exist. Hub datasets are checked when they are downloaded.

    Raises:
        SourceError: They do not exist, or have different or unsupported kinds.
    """
    if source.path is not None:
        find_source_files(source.name, source.path)


def find_source_files(name: str, path: Path) -> DataFiles:
    """Find the files that a dataset's path matches.

    Raises:
        SourceError: They do not exist, or have different or unsupported kinds.
    """
    try:
        return data_files.find(path)
    except SourceError as error:
        raise SourceError(f"sources.{name}.path: {error}") from None


def check_exam(exam: ExamConfig | LmEvalConfig) -> None:
    """Check that an exam's files exist, or that lm-evaluation-harness knows the task. Hub exams are checked later.

    Raises:
        SourceError: The path does not exist, is not an exam or lacks a subject, or the harness is not installed.
        NotFoundError: The harness does not have the task.
        RecipeError: The task does not have a metric.
    """
    if isinstance(exam, LmEvalConfig):
        lm_eval.check(exam)
    elif exam.path is not None:
        exams.find_question_files(exam, exam.path)


def check_metric(name: str) -> None:
    """Check that a metric's packages are installed, or that a custom metric's module exists.

    Raises:
        SourceError: A package is missing.
        RecipeError: The module of a custom metric does not exist.
    """
    if ":" in name:
        user_code.source_file(name, METRICS_KEY)
    packages = [package for package in REQUIRED_PACKAGES.get(name, ()) if find_spec(package) is None]
    if packages:
        raise SourceError(
            f"{METRICS_KEY}: {name} requires {' and '.join(packages)}, which is not installed. Install "
            "tuneline[compat], or remove the metric."
        )


def check_template(template: str) -> None:
    """Check that a chat template is built in, or that its file exists.

    Raises:
        NotFoundError: The name is not a built-in template.
        SourceError: The file does not exist.
    """
    if template.endswith(".jinja"):
        if not Path(template).is_file():
            raise SourceError(f"template: {limits.why_not_a_file(Path(template))}. Correct the path.")
        return
    known = ["auto", *(path.stem for path in TEMPLATES_FOLDER.glob("*.jinja"))]
    if template not in known:
        raise NotFoundError.among("template", template, known)


def check_model(model: ModelSource | ExportSource, options: ModelLoadOptions | None = None) -> None:
    """Check that a model's catalogue name is known, or that its files exist.

    Raises:
        NotFoundError: The name is not in the catalogue.
        SourceError: Folder, config, weights or tokenizer are missing.
    """
    match model:
        case CatalogueModel():
            catalogue_entry(model.name)
        case DirectoryModel():
            check_directory(model.path, options)
        case GgufModel():
            _check_gguf(model)


def _check_gguf(model: GgufModel) -> None:
    files = model.files()
    missing = [file for file in files if not file.is_file()]
    if missing and len(files) == 1:
        raise SourceError(f"model.path: {limits.why_not_a_file(model.path)}. Set the path of a GGUF file.")
    if missing:
        names = ", ".join(file.name for file in missing)
        raise SourceError(
            f"model.path: {model.path.name} is split into {len(files)} parts, but {model.path.parent} does not contain "
            f"{names}. Put all parts into one folder."
        )


def check_reward_function(recipe: Recipe) -> None:
    """Check that the module of the reward function exists. It is imported when the run starts.

    Raises:
        RecipeError: The module does not exist.
    """
    if name := getattr(recipe.train, "reward_function", None):
        user_code.source_file(name, "train.reward_function")


def check_adapter(path: Path, key: str = "load.adapters") -> None:
    """Check that a folder contains an adapter.

    Args:
        path: Adapter folder.
        key: Key in the recipe, for error messages.

    Raises:
        SourceError: Folder, config or weights are missing.
    """
    _check_plain_files(path, key)
    for names in (ADAPTER_CONFIGS, ("*.safetensors",)):
        if not any(True for name in names for _ in path.glob(name)):
            raise SourceError(
                f"{key}: {path} does not contain {' or '.join(names)}. Set an adapter folder written by a training or "
                "by peft."
            )


def check_directory(path: Path, options: ModelLoadOptions | None = None) -> None:
    """Check that a folder contains a model.

    Raises:
        SourceError: Folder, config, weights or tokenizer are missing.
    """
    if not path.is_dir():
        raise SourceError(f"model.path: folder {path} does not exist. Set a folder written by save_pretrained.")
    _check_plain_files(path, "model.path")
    options = options or ModelLoadOptions()
    pickled = any(path.glob("pytorch_model*.bin")) and not any(path.glob("*.safetensors"))
    if pickled and not (options.allow_pickle or options.train_from_scratch):
        raise SourceError(
            f"model.path: {path} only contains weights in pickle files, which can execute code when loaded. Convert "
            "them to safetensors, or set load.allow_pickle: true if you trust them."
        )
    weights = "pytorch_model*.bin" if pickled else "*.safetensors"
    required = {"config.json": "config.json", weights: "weights", "tokenizer*": "tokenizer"}
    if options.train_from_scratch:
        del required[weights]
    for pattern, what in required.items():
        if not any(path.glob(pattern)):
            raise SourceError(
                f"model.path: {path} does not contain {what} ({pattern}). Set a folder written by save_pretrained."
            )


def _check_plain_files(folder: Path, key: str) -> None:
    """Reject folders with special files, such as pipes, which would block on open."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.exists() and (kind := limits.special_file_kind(path)):
            raise SourceError(f"{key}: expected plain files, but {path} is {kind}. Remove it from the folder.")
