"""Read a run configuration strictly: one YAML file, checked as a whole, one line a mistake.

ZenML ignores keys that it does not know; here each is an error that names the line and the nearest known key. The
lists of ZenML's keys are written down so that nothing heavy is imported; a test compares them with ZenML's models.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tuneline.config import run_keys
from tuneline.config.recipe import SFTRecipe
from tuneline.errors import RecipeError, did_you_mean

PIPELINES = ("sft_pipeline", "retrain_pipeline")
Key = tuple[str | int, ...]


@dataclass(frozen=True)
class RunConfig:
    """A checked file: what it trains, by which pipeline, and its content with absolute paths."""

    path: Path
    pipeline: str
    recipe: SFTRecipe
    content: dict[str, Any]


def load(path: Path) -> RunConfig:
    """Read and check a run configuration.

    Raises:
        RecipeError: One line for each mistake: `file:line: key: what is wrong, what to do`.
    """
    content, lines = _parse(path)
    recipe_key: Key = ("parameters", "recipe")
    problems = list(_unknown_keys(content))
    recipe = None
    if isinstance(raw := _at(content, recipe_key), dict):
        _make_paths_absolute(raw, path.resolve().parent)
        try:
            recipe = SFTRecipe.model_validate(raw)
        except ValidationError as error:
            problems += [_explain(problem, raw, recipe_key) for problem in error.errors()]
    else:
        problems.append((recipe_key, "is required: it holds the recipe. See configs/demo.yaml for a complete one."))
    if recipe:
        problems += _unknown_steps(content, recipe)
    if problems or recipe is None:
        raise RecipeError("\n".join(f"{path}:{_line(lines, key)}: {_name(key)}: {text}" for key, text in problems))
    return RunConfig(path, (content.get("extra") or {}).get("pipeline", "sft_pipeline"), recipe, content)


def _parse(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    if not path.is_file():
        raise RecipeError(
            f"{path}: there is no such file. Give the path of a run configuration, like configs/demo.yaml."
        )
    text = path.read_text()
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: not valid YAML: {error.problem}. Correct the syntax there.") from error
    if node is None or not isinstance(content, dict):
        raise RecipeError(f"{path}:1: expected a mapping with the key 'parameters', got {type(content).__name__}.")
    lines: dict[Key, int] = {}
    for key, line in _marks(node, ()):
        if key in lines:
            raise RecipeError(f"{path}:{line}: {_name(key)}: is written twice (first in line {lines[key]}). Keep one.")
        lines[key] = line
    return content, lines


def _marks(node: yaml.Node, prefix: Key) -> Iterator[tuple[Key, int]]:
    """Yield every key with the line that it stands in."""
    children: Iterable[tuple[Any, yaml.Node, yaml.Node]] = ()
    if isinstance(node, yaml.MappingNode):
        children = [(name.value, name, value) for name, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(i, value, value) for i, value in enumerate(node.value)]
    for name, place, value in children:
        yield (*prefix, name), place.start_mark.line + 1
        yield from _marks(value, (*prefix, name))


def _unknown_keys(content: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    groups: list[tuple[Key, Iterable[str]]] = [
        ((), run_keys.RUN),
        (("parameters",), ("recipe",)),
        (("schedule",), run_keys.SCHEDULE),
        (("extra",), ("pipeline",)),
    ]
    steps = _at(content, ("steps",))
    groups += [(("steps", name), run_keys.STEP) for name in steps] if isinstance(steps, dict) else []
    for prefix, known in groups:
        section = _at(content, prefix)
        for name in section if isinstance(section, dict) else ():
            if name not in known:
                yield (*prefix, name), f"unknown key.{_hint(name, known)}"
    pipeline = _at(content, ("extra", "pipeline"))
    if pipeline is not None and pipeline not in PIPELINES:
        yield ("extra", "pipeline"), f"unknown pipeline {pipeline!r}.{_hint(str(pipeline), PIPELINES)}"
    if (cron := _at(content, ("schedule", "cron_expression"))) is not None:
        from croniter import croniter

        if not croniter.is_valid(str(cron)):
            yield (
                ("schedule", "cron_expression"),
                f"{cron!r} is no cron expression. Write five fields, like '0 3 * * *'.",
            )


def _unknown_steps(content: dict[str, Any], recipe: SFTRecipe) -> Iterator[tuple[Key, str]]:
    known = recipe.step_names()
    for name in content.get("steps") or {}:
        if name not in known:
            yield ("steps", name), f"unknown step.{_hint(name, known)}"


def _explain(problem: ErrorDetails, raw: Any, prefix: Key) -> tuple[Key, str]:
    key, parent = _written_key(problem["loc"], raw)
    match problem["type"]:
        case "extra_forbidden":
            known = _fields_beside(problem["loc"], parent)
            return (*prefix, *key), f"unknown key.{_hint(str(key[-1]), known)}"
        case "missing":
            return (*prefix, *key), "is required."
        case "value_error":
            return (*prefix, *key), str(problem["ctx"]["error"])
        case "union_tag_not_found":
            return (*prefix, *key, "type"), "is required; it says which kind this is."
        case "union_tag_invalid":
            tag, known = str(problem["ctx"]["tag"]), _quoted(problem["ctx"]["expected_tags"])
            return (*prefix, *key, "type"), f"unknown {key[-1]} {tag!r}.{_hint(tag, known)}"
        case "literal_error" if isinstance(problem["input"], str):
            known = _quoted(problem["ctx"]["expected"])
            return (*prefix, *key), f"unknown {key[-1]} {problem['input']!r}.{_hint(problem['input'], known)}"
        case _:
            return (*prefix, *key), f"{problem['msg']}, got {problem['input']!r}."


def _written_key(loc: Key, raw: Any) -> tuple[Key, Any]:
    """Drop from pydantic's location the tags of unions, which nobody wrote; also return the mapping around it."""
    key: list[str | int] = []
    here = parent = raw
    for i, part in enumerate(loc):
        inside = (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int))
        if inside:
            key.append(part)
            parent, here = here, here[part]  # type: ignore[index]
        elif i == len(loc) - 1 and isinstance(here, dict):
            key.append(part)
            parent = here
    return tuple(key), parent


def _fields_beside(loc: Key, parent: Any) -> list[str]:
    """Return the known keys where an unknown one stands: found by asking the recipe's own schema."""
    from tuneline.config.schema import fields_at

    return fields_at(SFTRecipe, loc[:-1], parent)


def _make_paths_absolute(raw: dict[str, Any], base: Path) -> None:
    """Paths in a recipe are relative to the recipe's file."""
    sections = [raw.get("model"), *(raw.get("sources") or []), *(raw.get("exams") or [])]
    for section in sections:
        if isinstance(section, dict) and isinstance(section.get("path"), str):
            section["path"] = str((base / section["path"]).resolve())


def _at(content: Any, key: Key) -> Any:
    for part in key:
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _line(lines: dict[Key, int], key: Key) -> int:
    """Return the line of a key, or of the nearest one around it that is written."""
    while key and key not in lines:
        key = key[:-1]
    return lines.get(key, 1)


def _name(key: Key) -> str:
    """Write a key as the user thinks of it: inside the recipe, without the way to it."""
    shown = key[2:] if key[:2] == ("parameters", "recipe") and len(key) > 2 else key
    return ".".join(map(str, shown))


def _hint(name: str, known: Iterable[str]) -> str:
    known = list(known)
    return did_you_mean(name, known) or f" Known: {', '.join(sorted(known))}."


def _quoted(expected: str) -> list[str]:
    """Read the names in pydantic's `'a', 'b' or 'c'`."""
    return expected.split("'")[1::2]
