"""YAML and JSON with limits: aliases that multiply, nesting without end and files without end are refused by line.

YAML lets a value name another one (`*alias`), so that a few lines can stand for billions of values, or for themselves.
Values are counted with their aliases written out, while they are read.
"""

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from tuneline import limits
from tuneline.errors import RecipeError

_NESTING = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}\n]', re.DOTALL)
"""A text, which may lack its end, or a sign that counts."""

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
MAX_NUMBER_LENGTH = 400
"""Characters of a number. YAML reads `1:30:00` to the base of 60, and a long one takes hours."""


class LimitExceededError(yaml.MarkedYAMLError):
    """A file goes beyond a limit, or an alias stands inside what it names."""


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which counts."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_nodes = self._depth = 0
        self._sizes: dict[int, int] = {}
        """Id of a complete node -> values in it, aliases written out; nodes live as long as the document."""

        self._most, self._deepest = limits.CONFIG_NODES.value(), limits.CONFIG_DEPTH.value()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                self._refuse(
                    f"the alias *{event.anchor} stands inside the value that it names. Write the value out.", mark
                )
            self._count(self._sizes[id(node)], mark)
            return node
        before, self._depth = self._num_nodes, self._depth + 1
        if self._depth > self._deepest:
            self._refuse(
                f"values are nested more than {self._deepest} deep. Write them flatter. {limits.CONFIG_DEPTH.advice()}",
                mark,
            )
        self._count(1, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > MAX_NUMBER_LENGTH:
            self._refuse(f"a number of {len(node.value):,} characters is none. Put it in quotes if it is a text.", mark)
        self._sizes[id(node)] = self._num_nodes - before
        return node

    def _count(self, num_nodes: int, mark: yaml.Mark) -> None:
        self._num_nodes += num_nodes
        if self._num_nodes > self._most:
            self._refuse(
                f"the file holds more than {self._most:,} values, aliases written out. Write less, or use fewer "
                f"aliases. {limits.CONFIG_NODES.advice()}",
                mark,
            )

    def _refuse(self, what: str, mark: yaml.Mark) -> NoReturn:
        raise LimitExceededError(None, None, what, mark)


def read_text(path: Path, what: str) -> str:
    """Read the text of a file of settings.

    Args:
        path: The file.
        what: What it should be, for messages.

    Raises:
        RecipeError: It is no plain file, too large, or no UTF-8.
    """
    if not limits.is_file(path):
        odd = limits.special_file_kind(path) or ("a folder" if limits.is_folder(path) else "")
        raise RecipeError(f"{path!s:.300}: {f'is {odd}' if odd else 'there is no such file'}. Give the path of {what}.")
    if (size := path.stat().st_size) > limits.CONFIG_BYTES.value():
        limit = limits.CONFIG_BYTES
        raise RecipeError(
            f"{path}: has {size:,} bytes, and at most {limit.shown()} are read. Give {what}. {limit.advice()}"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 text: byte {error.start} cannot be read. Save it as UTF-8.") from None


def parse_yaml(path: Path, text: str) -> tuple[Any, yaml.Node | None]:
    """Parse YAML.

    Raises:
        RecipeError: The syntax is wrong, or a limit is exceeded.
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
        told = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(f"{path}: not valid YAML: {told}. Correct the value, or put it in quotes.") from error


def parse_json(path: Path, text: str) -> tuple[Any, yaml.Node | None]:
    """Parse JSON; the lines come from reading it as YAML, which valid JSON is but for tabs between its words.

    Raises:
        RecipeError: The syntax is wrong, or a limit is exceeded.
    """
    _check_nesting(path, text)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg.lower()} at column {error.colno}. "
            "Correct the syntax there."
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise RecipeError(f"{path}: a value cannot be read ({error}). Correct it.") from None
    try:
        return content, yaml.compose(text.replace("\t", " "), Loader=BoundedLoader)
    except LimitExceededError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: {error.problem}") from None
    except yaml.YAMLError:
        return content, yaml.MappingNode("", [])  # a word that YAML refuses: then only the lines are unknown


def _check_nesting(path: Path, text: str) -> None:
    line, depth, deepest = 1, 0, limits.CONFIG_DEPTH.value()
    for match in _NESTING.finditer(text):
        sign = match[0]
        line += sign.count("\n")
        depth += (sign in ("[", "{")) - (sign in ("]", "}"))
        if depth > deepest:
            raise RecipeError(
                f"{path}:{line}: values are nested more than {deepest} deep. Write them flatter. "
                f"{limits.CONFIG_DEPTH.advice()}"
            )
