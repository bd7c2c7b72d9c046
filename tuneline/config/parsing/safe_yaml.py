"""YAML and JSON parsing with limits on aliases, nesting and file size; violations are reported with their line.

YAML aliases (`*alias`) can expand a few lines to billions of values, or refer to themselves. Values are counted during
parsing, with aliases expanded.
"""

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from tuneline import limits
from tuneline.errors import RecipeError

_NESTING = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}\n]', re.DOTALL)
"""A JSON string, possibly unterminated, or a character that changes the nesting depth or line."""

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
MAX_NUMBER_LENGTH = 400
"""Characters in a number. YAML reads `1:30:00` as a base-60 number, and parsing a long one takes hours."""


class LimitExceededError(yaml.MarkedYAMLError):
    """A file exceeds a limit, or an alias refers to a value that contains it."""


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with limits on values and nesting depth."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_nodes = self._depth = 0
        self._sizes: dict[int, int] = {}
        """Id of a complete node -> number of values in it, with aliases expanded."""

        self._max_nodes, self._max_depth = limits.CONFIG_NODES.value(), limits.CONFIG_DEPTH.value()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                self._refuse(
                    f"the alias *{event.anchor} is inside the value that it refers to. Replace it by the value.", mark
                )
            self._count(self._sizes[id(node)], mark)
            return node
        before, self._depth = self._num_nodes, self._depth + 1
        if self._depth > self._max_depth:
            self._refuse(
                f"values are nested more than {self._max_depth} levels deep. Reduce the nesting. "
                f"{limits.CONFIG_DEPTH.advice()}",
                mark,
            )
        self._count(1, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > MAX_NUMBER_LENGTH:
            self._refuse(f"a number has {len(node.value):,} characters. Put it in quotes if it is text.", mark)
        self._sizes[id(node)] = self._num_nodes - before
        return node

    def _count(self, num_nodes: int, mark: yaml.Mark) -> None:
        self._num_nodes += num_nodes
        if self._num_nodes > self._max_nodes:
            self._refuse(
                f"the file contains more than {self._max_nodes:,} values with aliases expanded. Shorten it, or use "
                f"fewer aliases. {limits.CONFIG_NODES.advice()}",
                mark,
            )

    def _refuse(self, message: str, mark: yaml.Mark) -> NoReturn:
        raise LimitExceededError(None, None, message, mark)


def read_text(path: Path, description: str) -> str:
    """Read the text of a configuration file.

    Args:
        path: The file.
        description: Expected kind of file, for messages.

    Raises:
        RecipeError: It is not a plain file, is too large, or is not UTF-8.
    """
    if not limits.is_file(path):
        kind = limits.special_file_kind(path) or ("a folder" if limits.is_folder(path) else "")
        problem = f"is {kind}, not a file" if kind else "file not found"
        raise RecipeError(f"{path!s:.300}: {problem}. Pass the path of {description}.")
    if (size := path.stat().st_size) > limits.CONFIG_BYTES.value():
        limit = limits.CONFIG_BYTES
        raise RecipeError(
            f"{path}: has {size:,} bytes; the maximum is {limit.to_text()}. Pass {description}. {limit.advice()}"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 text: byte {error.start} is invalid. Save it as UTF-8.") from None


def parse_yaml(path: Path, text: str) -> tuple[Any, yaml.Node | None]:
    """Parse YAML.

    Raises:
        RecipeError: The syntax is invalid, or a limit is exceeded.
    """
    try:
        loader = BoundedLoader(text)
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        if isinstance(error, LimitExceededError):
            raise RecipeError(f"{path}:{line}: {error.problem}") from None
        raise RecipeError(f"{path}:{line}: not valid YAML: {error.problem}. Correct the syntax there.") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(f"{path}: not valid YAML: {reason}. Correct the value, or put it in quotes.") from error


def parse_json(path: Path, text: str) -> tuple[Any, yaml.Node | None]:
    """Parse JSON. Line numbers come from parsing it as YAML, which accepts valid JSON except for tabs between tokens.

    Raises:
        RecipeError: The syntax is invalid, or a limit is exceeded.
    """
    _check_nesting(path, text)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg.lower()} at column {error.colno}. "
            "Correct the syntax there."
        ) from None
    except ValueError as error:  # a number with thousands of digits
        raise RecipeError(f"{path}: not valid JSON: {error}. Correct the value.") from None
    try:
        return content, yaml.compose(text.replace("\t", " "), Loader=BoundedLoader)
    except LimitExceededError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: {error.problem}") from None
    except yaml.YAMLError:
        return content, yaml.MappingNode("", [])  # valid JSON that YAML rejects: only the lines are unknown


def _check_nesting(path: Path, text: str) -> None:
    line, depth, max_depth = 1, 0, limits.CONFIG_DEPTH.value()
    for match in _NESTING.finditer(text):
        sign = match[0]
        line += sign.count("\n")
        depth += (sign in ("[", "{")) - (sign in ("]", "}"))
        if depth > max_depth:
            raise RecipeError(
                f"{path}:{line}: values are nested more than {max_depth} levels deep. Reduce the nesting. "
                f"{limits.CONFIG_DEPTH.advice()}"
            )
