"""Read YAML and JSON files strictly, with the line number of every key for error messages.

Independent of recipes: `load` reads run configurations with it, `dataset_registry` reads dataset registries.
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
    """A file's content, with the line number of every key."""

    path: Path
    content: dict[str, Any]
    lines: dict[Key, int]
    root: Key = ()
    """Key prefix of the relevant part of the file; messages omit it."""

    def format_errors(self, problems: Iterable[Problem]) -> list[str]:
        """Format problems as `file:line: key: message`."""
        return [f"{self.path}:{self._line(key)}: {_format_key(key, self.root)}: {text}" for key, text in problems]

    def _line(self, key: Key) -> int:
        """Return the line of a key, or of its closest parent that is in the file."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)


def read(path: Path, *, description: str, root: Key = ()) -> Document:
    """Read a mapping from a YAML or JSON file.

    Args:
        path: A YAML file, or a JSON file with suffix `.json`.
        description: Expected kind of file, for messages: `a run configuration, like configs/demo.yaml`.
        root: Key prefix of the relevant part of the file; messages omit it.

    Raises:
        RecipeError: The file does not exist, is not valid, does not contain a mapping, or has a duplicate key.
    """
    text = safe_yaml.read_text(path, description)
    content, node = (safe_yaml.parse_json if path.suffix == ".json" else safe_yaml.parse_yaml)(path, text)
    if node is None or not isinstance(content, dict):
        raise RecipeError(f"{path}:1: expected a mapping, got {type(content).__name__}. Pass {description}.")
    lines: dict[Key, int] = {}
    for key, line in _key_lines(node, ()):
        if key in lines:
            first = lines[key]
            raise RecipeError(
                f"{path}:{line}: {_format_key(key, root)}: is a duplicate key (first in line {first}). Remove one."
            )
        lines[key] = line
    return Document(path, content, lines, root)


def _key_lines(node: yaml.Node, prefix: Key) -> Iterator[tuple[Key, int]]:
    """Yield every key with its line number."""
    children: Iterable[tuple[Any, yaml.Node, yaml.Node]] = ()
    if isinstance(node, yaml.MappingNode):
        children = [(name.value, name, value) for name, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(i, value, value) for i, value in enumerate(node.value)]
    for name, marked, value in children:
        yield (*prefix, name), marked.start_mark.line + 1
        yield from _key_lines(value, (*prefix, name))


def validate(
    model: type[BaseModel], raw: Any, prefix: Key, known: Callable[[Key, Any], list[str]] | None = None
) -> tuple[Any, list[Problem]]:
    """Validate a part of a document.

    Args:
        model: Expected config model.
        raw: The part, as read from the file.
        prefix: Its key in the document.
        known: Returns the allowed keys at a pydantic location, given the mapping there; default: the model's fields.

    Returns:
        The valid model, or None; and the problems.
    """
    try:
        return model.model_validate(raw), []
    except ValidationError as error:
        lookup = known or (lambda loc, parent: sibling_fields(model, loc, parent))
        by_key: dict[Key, list[ErrorDetails]] = {}
        for problem in error.errors():
            by_key.setdefault(_file_key(problem["loc"], raw)[0], []).append(problem)
        return None, [
            _explain(problems[0], raw, prefix, lookup)
            if len(problems) == 1
            else ((*prefix, *key), _union_message(problems))
            for key, problems in by_key.items()
        ]


def sibling_fields(model: type[BaseModel], loc: Key, parent: Any) -> list[str]:
    """Return the keys that are allowed next to an unknown key, according to the model's schema."""
    from tuneline.config.parsing.field_lookup import fields_at

    return fields_at(model, loc[:-1], parent)


def _explain(problem: ErrorDetails, raw: Any, prefix: Key, known: Callable[[Key, Any], list[str]]) -> Problem:
    key, parent = _file_key(problem["loc"], raw)
    match problem["type"]:
        case "extra_forbidden":
            return (*prefix, *key), f"unknown key.{suggest(str(key[-1]), known(problem['loc'], parent))}"
        case "missing":
            return (*prefix, *key), "is required."
        case "model_type" | "dict_type":
            return (*prefix, *key), f"expected a mapping, got {_format_input(problem['input'])}."
        case "value_error":
            return (*prefix, *key), str(problem["ctx"]["error"])
        case "union_tag_not_found":
            return (*prefix, *key, "type"), "is required. Set the kind of this section."
        case "union_tag_invalid":
            tag, tags = str(problem["ctx"]["tag"]), _extract_names(problem["ctx"]["expected_tags"])
            field = problem["ctx"]["discriminator"].strip("'").removesuffix("()")
            shown = field if isinstance(key[-1], int) else key[-1]
            return (*prefix, *key, field), f"unknown {shown} {tag!r}.{suggest(tag, tags)}"
        case "literal_error" if isinstance(problem["input"], str):
            values = _extract_names(problem["ctx"]["expected"])
            return (*prefix, *key), f"unknown {key[-1]} {problem['input']!r}.{suggest(problem['input'], values)}"
        case _:
            return (*prefix, *key), f"{problem['msg']}, got {_format_input(problem['input'])}."


def _union_message(problems: list[ErrorDetails]) -> str:
    """Return the error message for a value that matches no member of a union."""
    kinds = [re.sub(r"^Input should be |, unable to .*$", "", problem["msg"]) for problem in problems]
    return f"expected {' or '.join(kinds)}, got {_format_input(problems[0]['input'])}."


def _format_input(value: Any) -> str:
    return f"{value!r:.200}"


def _file_key(loc: Key, raw: Any) -> tuple[Key, Any]:
    """Convert a pydantic error location to a key in the file, without union tags; also return the parent mapping."""
    key: list[str | int] = []
    here = parent = raw
    for i, part in enumerate(loc):
        exists = (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int))
        if exists:
            key.append(part)
            parent, here = here, here[part]  # type: ignore[index]
        elif i == len(loc) - 1 and isinstance(here, dict):
            key.append(part)
            parent = here
    return tuple(key), parent


def value_at(content: Any, key: Key) -> Any:
    """Return the value at a key of nested mappings, or None."""
    for part in key:
        content = content.get(part) if isinstance(content, dict) else None
    return content


def absolute_path(path: str, base: Path) -> str:
    """Make a path, or a glob pattern like `data/*.jsonl`, absolute. Relative paths start at `base`."""
    if "\0" in path:
        return path  # not a valid path: the config model rejects it
    if glob.has_magic(path) and not (base / path).exists():
        return os.path.normpath(Path(glob.escape(str(base)), path))
    resolved = Path(os.path.realpath(base / path))  # `resolve` fails on a link to itself
    if resolved.suffix != Path(path).suffix:  # the suffix determines the kind of file
        return os.path.normpath(base / path)
    return str(resolved)


def suggest(name: Any, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?`, or the list of known names."""
    known = list(known)
    return did_you_mean(str(name), known) or f" Known: {', '.join(sorted(known))}."


def _format_key(key: Key, root: Key) -> str:
    """Format a key with dots, without the prefix `root`."""
    shown = key[len(root) :] if key[: len(root)] == root and len(key) > len(root) else key
    return ".".join(map(str, shown))


def _extract_names(expected: str) -> list[str]:
    """Extract the names from pydantic's `'a', 'b' or 'c'`."""
    return expected.split("'")[1::2]
