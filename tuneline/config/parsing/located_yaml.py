"""Read a YAML or JSON file strictly: every key keeps its line, so that a mistake is told where it was written.

Knows nothing of recipes: `load` reads run configurations with it, `descriptions` the descriptions of data sets.
"""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tuneline.config.parsing import safe_yaml
from tuneline.errors import RecipeError, did_you_mean

Key = tuple[str | int, ...]
Problem = tuple[Key, str]


@dataclass(frozen=True)
class Document:
    """A file's content, and the line of every key."""

    path: Path
    content: dict[str, Any]
    lines: dict[Key, int]
    inside: Key = ()
    """Way to the part that the file is about; messages leave it out of keys."""

    def tell(self, problems: Iterable[Problem]) -> list[str]:
        """Write problems down, each as `file:line: key: what is wrong`."""
        return [f"{self.path}:{self._line(key)}: {_name(key, self.inside)}: {text}" for key, text in problems]

    def _line(self, key: Key) -> int:
        """Return the line of a key, or of the nearest one around it that is written."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)


def read(path: Path, *, what: str, inside: Key = ()) -> Document:
    """Read a mapping.

    Args:
        path: A YAML file, or a JSON file by its ending `.json`.
        what: What the file should be, for messages: `a run configuration, like configs/demo.yaml`.
        inside: Way to the part that the file is about.

    Raises:
        RecipeError: There is no such file, its syntax is wrong, it is no mapping, or a key is written twice.
    """
    text = safe_yaml.read_text(path, what)
    content, node = (safe_yaml.parse_json if path.suffix == ".json" else safe_yaml.parse_yaml)(path, text)
    if node is None or not isinstance(content, dict):
        raise RecipeError(f"{path}:1: expected a mapping, got {type(content).__name__}. Give {what}.")
    lines: dict[Key, int] = {}
    for key, line in _marks(node, ()):
        if key in lines:
            first = lines[key]
            raise RecipeError(
                f"{path}:{line}: {_name(key, inside)}: is written twice (first in line {first}). Keep one."
            )
        lines[key] = line
    return Document(path, content, lines, inside)


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


def validate(
    model: type[BaseModel], raw: Any, prefix: Key, known: Callable[[Key, Any], list[str]] | None = None
) -> tuple[Any, list[Problem]]:
    """Validate a part of a document.

    Args:
        model: What it should be.
        raw: The part, as it was written.
        prefix: Where it stands in the document.
        known: Which keys are known at a location of pydantic's, given the mapping there; default: the model's fields.

    Returns:
        The valid model, or None; and what is wrong.
    """
    try:
        return model.model_validate(raw), []
    except ValidationError as error:
        ask = known or (lambda loc, parent: sibling_fields(model, loc, parent))
        found: dict[Key, list[ErrorDetails]] = {}
        for problem in error.errors():
            found.setdefault(_written_key(problem["loc"], raw)[0], []).append(problem)
        return None, [
            _explain(told[0], raw, prefix, ask) if len(told) == 1 else ((*prefix, *key), _none_of(told))
            for key, told in found.items()
        ]


def sibling_fields(model: type[BaseModel], loc: Key, parent: Any) -> list[str]:
    """Return the known keys where an unknown one stands: found by asking the model's own schema."""
    from tuneline.config.parsing.field_lookup import fields_at

    return fields_at(model, loc[:-1], parent)


def _explain(problem: ErrorDetails, raw: Any, prefix: Key, known: Callable[[Key, Any], list[str]]) -> Problem:
    key, parent = _written_key(problem["loc"], raw)
    match problem["type"]:
        case "extra_forbidden":
            return (*prefix, *key), f"unknown key.{suggest(str(key[-1]), known(problem['loc'], parent))}"
        case "missing":
            return (*prefix, *key), "is required."
        case "model_type" | "dict_type":
            return (*prefix, *key), f"expected a mapping, got {_shown(problem['input'])}."
        case "value_error":
            return (*prefix, *key), str(problem["ctx"]["error"])
        case "union_tag_not_found":
            return (*prefix, *key, "type"), "is required; it says which kind this is."
        case "union_tag_invalid":
            tag, tags = str(problem["ctx"]["tag"]), _quoted(problem["ctx"]["expected_tags"])
            field = problem["ctx"]["discriminator"].strip("'").removesuffix("()")
            shown = field if isinstance(key[-1], int) else key[-1]
            return (*prefix, *key, field), f"unknown {shown} {tag!r}.{suggest(tag, tags)}"
        case "literal_error" if isinstance(problem["input"], str):
            values = _quoted(problem["ctx"]["expected"])
            return (*prefix, *key), f"unknown {key[-1]} {problem['input']!r}.{suggest(problem['input'], values)}"
        case _:
            return (*prefix, *key), f"{problem['msg']}, got {_shown(problem['input'])}."


def _none_of(problems: list[ErrorDetails]) -> str:
    """Say what a value should have been that fits none of the kinds it may have."""
    kinds = [re.sub(r"^Input should be |, unable to .*$", "", problem["msg"]) for problem in problems]
    return f"expected {' or '.join(kinds)}, got {_shown(problems[0]['input'])}."


def _shown(value: Any) -> str:
    return f"{value!r:.200}"


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


def value_at(content: Any, key: Key) -> Any:
    """Return what stands at a key of nested mappings, or None."""
    for part in key:
        content = content.get(part) if isinstance(content, dict) else None
    return content


def absolute_path(written: str, base: Path) -> str:
    """Make a path, or a pattern like `data/*.jsonl`, that is relative to a file's folder absolute."""
    if "\0" in written:
        return written  # which no path holds: its model refuses it
    if glob.has_magic(written) and not (base / written).exists():
        return os.path.normpath(Path(glob.escape(str(base)), written))
    found = Path(os.path.realpath(base / written))  # `resolve` fails on a link that leads to itself
    if found.suffix != Path(written).suffix:  # by which the kind of a file is known
        return os.path.normpath(base / written)
    return str(found)


def suggest(name: Any, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?`, or what is known."""
    known = list(known)
    return did_you_mean(str(name), known) or f" Known: {', '.join(sorted(known))}."


def _name(key: Key, inside: Key) -> str:
    """Write a key as the user thinks of it."""
    shown = key[len(inside) :] if key[: len(inside)] == inside and len(key) > len(inside) else key
    return ".".join(map(str, shown))


def _quoted(expected: str) -> list[str]:
    """Read the names in pydantic's `'a', 'b' or 'c'`."""
    return expected.split("'")[1::2]
