"""Parse a model argument of the command line: a path, or the name of a model in the registry or on the Hub.

Nothing is looked up except paths: an existing path has precedence over a name.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tuneline.config.sections.export import RegisteredModel
from tuneline.config.sections.model import CatalogueModel, DirectoryModel, GgufModel, HubModel, catalogue
from tuneline.errors import RecipeError

MODEL_NAME = re.compile(r"^(?P<scheme>models:/)?(?P<name>[\w.-]{1,256})(?:[@/](?P<version>[\w-]{1,255}))?$")
MAX_CHARACTERS = 256
"""Maximum length of the name of a registered model."""

REPOSITORY = re.compile(
    r"^(hf:)?(?P<repo_id>(?=.{3,128}$|.{3,128}@)[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?$"
)
ADAPTER_CONFIGS = ("adapter_config.json", "bottleneck_config.json")
LOAD_CONFIG, WHOLE_MODEL = "adapter_base.json", "config.json"
PATH_PREFIXES = ("./", "../", "/", "~")
CHECKPOINT_NAME = re.compile(r"^checkpoint-\d+$")
TRAINED_WEIGHTS = "trained.safetensors"


@dataclass(frozen=True)
class AdapterFolder:
    """A folder with an adapter, without its base model."""

    path: Path


@dataclass(frozen=True)
class TrainingCheckpoint:
    """A checkpoint of a training, or the state folder of a training, which means its latest checkpoint."""

    path: Path


ModelReference = (
    RegisteredModel | DirectoryModel | HubModel | CatalogueModel | GgufModel | AdapterFolder | TrainingCheckpoint
)


def parse_registered(text: str) -> RegisteredModel | None:
    """Parse the name of a registered model: `demo`, `demo@champion`, `demo/2`, `models:/demo/2`.

    Returns:
        The model, by default its champion; None if the text cannot be such a name.
    """
    match = MODEL_NAME.match(text)
    if not match:
        return None
    return RegisteredModel(type="registered", name=match["name"], version=match["version"] or "champion")


def parse(text: str) -> ModelReference:
    """Parse a model argument.

    In this order: an existing path; a name with an alias or a number (`demo@champion`, `demo/7`, `models:/demo/7`);
    a Hub repository (`owner/name`, with a revision `owner/name@main`); a catalogue name; the champion of a registered
    model.

    Raises:
        RecipeError: It is none of these.
    """
    if path := _existing_path(text):
        return _folder(path) if path.is_dir() else _file(path)
    if text.startswith(PATH_PREFIXES) or text.endswith(".gguf"):
        raise RecipeError(f"{text[:200]} does not exist. Give the path of a model folder or a .gguf file.")
    registered = parse_registered(text)
    repository = REPOSITORY.match(text)
    is_number = registered is not None and registered.version.isdecimal()
    if repository and not (text.startswith("models:/") or is_number):
        return HubModel(type="hub", repo_id=repository["repo_id"], revision=repository["revision"] or "main")
    if registered is None or len(text) > MAX_CHARACTERS:
        raise _error(text)
    if text in catalogue():
        return CatalogueModel(type="catalogue", name=text)
    return registered


def _existing_path(text: str) -> Path | None:
    try:
        return Path(text).resolve() if text.strip() and Path(text).exists() else None
    except (OSError, ValueError):  # too long, or a null byte
        return None


def _folder(path: Path) -> ModelReference:
    """Return the kind of a folder by its files."""
    is_checkpoint = CHECKPOINT_NAME.match(path.name) and (path / TRAINED_WEIGHTS).is_file()
    if is_checkpoint or any(path.glob(f"checkpoint-*/{TRAINED_WEIGHTS}")):
        return TrainingCheckpoint(path)
    if (path / LOAD_CONFIG).is_file():
        return DirectoryModel(type="directory", path=path)
    if any((path / name).is_file() for name in ADAPTER_CONFIGS) and not (path / WHOLE_MODEL).is_file():
        return AdapterFolder(path)
    return DirectoryModel(type="directory", path=path)


def _file(path: Path) -> ModelReference:
    if path.suffix == ".gguf":
        return GgufModel(type="gguf", path=path)
    raise RecipeError(f"{path} is a file of an unsupported kind. Give a .gguf file, a folder, or the name of a model.")


def _error(text: str) -> RecipeError:
    return RecipeError(
        f"{text[:200]!r} is neither an existing path nor a valid name of a model. Give a folder, a .gguf file, a "
        "registered model such as demo@champion (`tuneline models` lists them), a catalogue name, or a Hub repository "
        "owner/name."
    )
