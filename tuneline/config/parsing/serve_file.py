"""Read the settings of a server from a YAML file with the keys of `ServeConfig`."""

from pathlib import Path
from typing import Any

from tuneline.config.parsing import located_yaml
from tuneline.config.sections.serve import ServeConfig
from tuneline.errors import RecipeError

PATH_KEYS = ("keys", "canary_prompts", "engine_python")
DESCRIPTION = "settings of a server, with at least the key model"


def read(path: Path, **changes: Any) -> ServeConfig:
    """Read and validate a settings file. Relative paths start at the folder of the file.

    Args:
        path: The file.
        changes: Values that replace those of the file.

    Raises:
        RecipeError: The file is invalid. One line per error: `file:line: key: message`.
    """
    document = located_yaml.read(path, description=DESCRIPTION)
    if "parameters" in document.content:
        raise RecipeError(
            f"{path}: expected {DESCRIPTION}, got a run configuration. Run it with: tuneline run {path}; then serve "
            "the model that it registers."
        )
    base = path.resolve().parent
    content = {**document.content, **changes}
    for key in PATH_KEYS:
        if isinstance(content.get(key), str) and key not in changes:
            content[key] = located_yaml.absolute_path(content[key], base)
    for key in {"model", "base"} - changes.keys():
        if isinstance(content.get(key), str):
            content[key] = _reference(content[key], base)
    if isinstance(content.get("adapters"), dict) and "adapters" not in changes:
        content["adapters"] = {
            name: _reference(text, base) if isinstance(text, str) else text
            for name, text in content["adapters"].items()
        }
    config, problems = located_yaml.validate(ServeConfig, content, ())
    if problems or config is None:
        raise RecipeError("\n".join(document.format_errors(problems)))
    assert isinstance(config, ServeConfig)
    return config


def _reference(text: str, base: Path) -> str:
    """Make the path in a model reference absolute if it exists in the folder of the file."""
    if "\0" in text or len(text) > 4000:
        return text
    return str((base / text).resolve()) if (base / text).exists() else text
