"""Gates in files: `registry.gate: gates/strict.yaml`, relative to the recipe, with the same keys as in a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneline import limits
from tuneline.config.parsing import located_yaml
from tuneline.config.parsing.located_yaml import Document, Key, Problem
from tuneline.errors import RecipeError

SINGLE_TARGET_KEYS = ("metric", "min_gain")
"""Keys of a gate with one target; they say the same as one entry of `targets`."""


def expand(document: Document, raw: dict[str, Any]) -> list[str]:
    """Put a gate that stands in a file of its own into the recipe, and look at what only the written keys can tell.

    Args:
        document: The recipe's file.
        raw: The recipe in it; changed in place. A wrong gate is taken out, so that it is told once.

    Returns:
        What is wrong, one line a mistake.
    """
    registry = raw.get("registry")
    gate = registry.get("gate") if isinstance(registry, dict) else None
    here: Key = (*document.inside, "registry", "gate")
    if isinstance(gate, dict):
        return document.tell(((*here, *key), text) for key, text in find_conflicts(gate))
    if not isinstance(registry, dict) or not isinstance(gate, str):
        return []
    path = Path(located_yaml.absolute_path(gate, document.path.resolve().parent))
    if not limits.is_file(path):
        del registry["gate"]
        text = (
            f"{limits.why_not_a_file(path)}. Give the path of a gate, relative to the recipe, or write the gate here."
        )
        return document.tell([(here, text)])
    registry["gate"], told = _checked(path)
    return told


def read(path: Path) -> dict[str, Any]:
    """Read the file of a gate, checked.

    Raises:
        RecipeError: One line for each mistake.
    """
    content, told = _checked(path)
    if told:
        raise RecipeError("\n".join(told))
    return content


def _checked(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return a gate's keys, none where they are wrong, and its mistakes with their lines."""
    from tuneline.config.sections.gate import GateConfig

    try:
        document = located_yaml.read(path, what="a gate, like configs/gates/strict.yaml")
    except RecipeError as error:
        return {}, str(error).splitlines()
    problems = find_conflicts(document.content)
    if not problems:
        _, problems = located_yaml.validate(GateConfig, document.content, ())
    return ({} if problems else document.content), document.tell(problems)


def find_conflicts(gate: Mapping[str, Any]) -> list[Problem]:
    """Find targets that are written both ways."""
    if not gate.get("targets"):
        return []
    return [
        ((key,), f"stands beside targets, which say the same. Write it as an entry of targets, or leave {key} out.")
        for key in SINGLE_TARGET_KEYS
        if key in gate
    ]
