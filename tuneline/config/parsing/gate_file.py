"""Gates in separate files: `registry.gate: gates/strict.yaml`, with the same keys as in a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneline import limits
from tuneline.config.parsing import located_yaml
from tuneline.config.parsing.located_yaml import Document, Key, Problem
from tuneline.errors import RecipeError

SINGLE_TARGET_KEYS = ("metric", "min_gain")
"""Keys of a gate with a single target, equivalent to one entry of `targets`."""


def expand(document: Document, raw: dict[str, Any]) -> list[str]:
    """Replace a gate's file name in a recipe by the file's content, and report keys that conflict.

    Args:
        document: The recipe's file.
        raw: The recipe in it; changed in place. An invalid gate is removed, so that it is reported once.

    Returns:
        Errors, one line each.
    """
    registry = raw.get("registry")
    gate = registry.get("gate") if isinstance(registry, dict) else None
    gate_key: Key = (*document.root, "registry", "gate")
    if isinstance(gate, dict):
        return document.format_errors(((*gate_key, *key), text) for key, text in find_conflicts(gate))
    if not isinstance(registry, dict) or not isinstance(gate, str):
        return []
    path = Path(located_yaml.absolute_path(gate, document.path.resolve().parent))
    if not limits.is_file(path):
        del registry["gate"]
        reason = limits.why_not_a_file(path)
        text = f"{reason}. Set the path of a gate file, relative to the recipe, or the keys of a gate."
        return document.format_errors([(gate_key, text)])
    registry["gate"], errors = _validate(path)
    return errors


def read(path: Path) -> dict[str, Any]:
    """Read and validate a gate file.

    Raises:
        RecipeError: The file is invalid. One line per error.
    """
    content, errors = _validate(path)
    if errors:
        raise RecipeError("\n".join(errors))
    return content


def _validate(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return a gate's keys, or an empty dict if they are invalid, and its errors with line numbers."""
    from tuneline.config.sections.gate import GateConfig

    try:
        document = located_yaml.read(path, description="a gate, like configs/gates/strict.yaml")
    except RecipeError as error:
        return {}, str(error).splitlines()
    problems = find_conflicts(document.content)
    if not problems:
        _, problems = located_yaml.validate(GateConfig, document.content, ())
    return ({} if problems else document.content), document.format_errors(problems)


def find_conflicts(gate: Mapping[str, Any]) -> list[Problem]:
    """Return errors for `metric` or `min_gain` next to `targets`."""
    if not gate.get("targets"):
        return []
    return [
        ((key,), f"cannot be combined with targets. Add it as an entry of targets, or remove {key}.")
        for key in SINGLE_TARGET_KEYS
        if key in gate
    ]
