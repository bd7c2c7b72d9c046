"""Are the files that a recipe names there? Reads nothing, imports nothing heavy: `tuneline plan` asks first."""

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
"""What says how an adapter is built: one of peft, or one of our bottleneck adapters."""

TEMPLATES_FOLDER = Path(__file__).parents[1] / "data" / "chat_template" / "templates"


def check(recipe: RunRecipe) -> None:
    """Look whether everything that a recipe names is there.

    Raises:
        SourceError: One line for each thing that is missing.
    """
    if problems := find_missing(recipe):
        raise SourceError("\n".join(problems))


def find_missing(recipe: RunRecipe) -> list[str]:
    """Return one line for each thing that a recipe names and that is not there."""
    problems = []
    for check in _of_export(recipe) if isinstance(recipe, ExportRecipe) else _of_training(recipe):
        try:
            check()
        except TunelineError as error:
            problems.append(str(error))
    return problems


def _of_export(recipe: ExportRecipe) -> list[Callable[[], None]]:
    holding = ModelLoadOptions(trust_remote_code=recipe.trust_remote_code, allow_pickle=recipe.allow_pickle)
    return [
        lambda: check_model(recipe.model, holding),
        *(lambda path=path: check_adapter(path, "adapters") for path in recipe.adapters),  # type: ignore[misc]
        lambda: check_template(recipe.template),
    ]


def _of_training(recipe: Recipe) -> list[Callable[[], None]]:
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
    """Check that a data set's files are there; those of the hub are looked for when they are fetched.

    Raises:
        SourceError: They are missing, or of kinds that are not read together.
    """
    if source.path is not None:
        find_source_files(source.name, source.path)


def find_source_files(name: str, path: Path) -> DataFiles:
    """Find the files that the path of a data set means.

    Raises:
        SourceError: They are missing, or of kinds that are not read together.
    """
    try:
        return data_files.find(path)
    except SourceError as error:
        raise SourceError(f"sources.{name}.path: {error}") from None


def check_exam(exam: ExamConfig | LmEvalConfig) -> None:
    """Check that an exam's files are there, or that the harness has the task; what the hub has is looked for later.

    Raises:
        SourceError: The place is missing, is no exam, or lacks a subject; the harness is not installed.
        NotFoundError: The harness has no such task.
        RecipeError: The task lacks a metric.
    """
    if isinstance(exam, LmEvalConfig):
        lm_eval.check(exam)
    elif exam.path is not None:
        exams.find_question_files(exam, exam.path)


def check_metric(name: str) -> None:
    """Check that a metric's packages are installed, or that there is a module behind one of the user's own.

    Raises:
        SourceError: A package is missing.
        RecipeError: There is no such module.
    """
    if ":" in name:
        user_code.source_file(name, METRICS_KEY)
    absent = [package for package in REQUIRED_PACKAGES.get(name, ()) if find_spec(package) is None]
    if absent:
        raise SourceError(
            f"{METRICS_KEY}: {name} needs {' and '.join(absent)}, which is not installed. Install tuneline[compat], or "
            "leave it out."
        )


def check_template(template: str) -> None:
    """Check that a chat template is one of the catalogue, or a file that is there.

    Raises:
        NotFoundError: The catalogue lacks the name.
        SourceError: There is no such file.
    """
    if template.endswith(".jinja"):
        if not Path(template).is_file():
            raise SourceError(f"template: {limits.why_not_a_file(Path(template))}. Correct the path.")
        return
    known = ["auto", *(path.stem for path in TEMPLATES_FOLDER.glob("*.jinja"))]
    if template not in known:
        raise NotFoundError.among("template", template, known)


def check_model(model: ModelSource | ExportSource, holding: ModelLoadOptions | None = None) -> None:
    """Check that a model's name is known, or its files are there.

    Raises:
        NotFoundError: The catalogue lacks the name.
        SourceError: Folder, config, weights or tokenizer are missing.
    """
    match model:
        case CatalogueModel():
            catalogue_entry(model.name)
        case DirectoryModel():
            check_directory(model.path, holding)
        case GgufModel():
            _check_gguf(model)


def _check_gguf(model: GgufModel) -> None:
    files = model.files()
    missing = [file for file in files if not file.is_file()]
    if missing and len(files) == 1:
        raise SourceError(f"model.path: {limits.why_not_a_file(model.path)}. Give a GGUF file.")
    if missing:
        names = ", ".join(file.name for file in missing)
        raise SourceError(
            f"model.path: {model.path.name} is split into {len(files)} parts, and {model.path.parent} lacks {names}. "
            "Put all parts into one folder."
        )


def check_reward_function(recipe: Recipe) -> None:
    """Find the file of a reward function, if the recipe names one; it is imported when the run starts.

    Raises:
        RecipeError: There is no such module.
    """
    if name := getattr(recipe.train, "reward_function", None):
        user_code.source_file(name, "train.reward_function")


def check_adapter(path: Path, key: str = "load.adapters") -> None:
    """Check that a folder looks like an adapter.

    Args:
        path: The folder.
        key: What it is called in the recipe.

    Raises:
        SourceError: Folder, config or weights are missing.
    """
    _check_plain_files(path, key)
    for names in (ADAPTER_CONFIGS, ("*.safetensors",)):
        if not any(True for name in names for _ in path.glob(name)):
            raise SourceError(
                f"{key}: {path} has no {' or '.join(names)}. Give a folder that a training or peft wrote."
            )


def check_directory(path: Path, holding: ModelLoadOptions | None = None) -> None:
    """Check that a folder looks like a model.

    Raises:
        SourceError: Folder, config, weights or tokenizer are missing.
    """
    if not path.is_dir():
        raise SourceError(f"model.path: there is no folder {path}. Give one that save_pretrained wrote.")
    _check_plain_files(path, "model.path")
    holding = holding or ModelLoadOptions()
    pickled = any(path.glob("pytorch_model*.bin")) and not any(path.glob("*.safetensors"))
    if pickled and not (holding.allow_pickle or holding.train_from_scratch):
        raise SourceError(
            f"model.path: {path} has its weights in pickle files only, which can run code when read. Convert them to "
            "safetensors, or set load.allow_pickle: true if you trust them."
        )
    weights = "pytorch_model*.bin" if pickled else "*.safetensors"
    wanted = {"config.json": "config.json", weights: "weights", "tokenizer*": "tokenizer"}
    if holding.train_from_scratch:
        del wanted[weights]
    for pattern, what in wanted.items():
        if not any(path.glob(pattern)):
            raise SourceError(
                f"model.path: {path} has no {what} ({pattern}). Give a folder that save_pretrained wrote."
            )


def _check_plain_files(folder: Path, key: str) -> None:
    """Check that no file of a folder would block whoever opens it."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.exists() and (odd := limits.special_file_kind(path)):
            raise SourceError(f"{key}: {path} is {odd}. Remove it from the folder.")
