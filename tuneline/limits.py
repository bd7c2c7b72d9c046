"""Limits on input and rendering, each with a default and an environment variable that overrides it.

Input beyond a limit is an error that names the variable, so that no file can exhaust the memory or hang a command. Only
regular files are opened: a named pipe waits for a writer, and a device never ends.
"""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from tuneline.errors import RecipeError, SourceError

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Limit:
    """A limit; the environment variable overrides the default with an integer that may end in K, M or G."""

    variable: str
    default: int
    description: str
    """What is limited."""

    def value(self) -> int:
        """Return the current limit.

        Raises:
            RecipeError: The variable is not an integer above 0.
        """
        text = os.environ.get(self.variable)
        if text is None:
            return self.default
        digits = text.strip().upper().removesuffix("B")
        unit = UNITS.get(digits[-1:], 1)
        digits = digits[:-1] if unit > 1 else digits
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 15 and int(digits)):
            raise RecipeError(f"{self.variable} is {text!r:.60}. Set a whole number above 0, like 64M or 1000.")
        return int(digits) * unit

    def advice(self) -> str:
        """Return the sentence that explains how to raise the limit."""
        return f"To allow more, set the environment variable {self.variable}."

    def to_text(self) -> str:
        """Return the limit as text: `64 MiB`, `1,000,000`."""
        return _format(self.value(), is_size=self.variable.endswith("_BYTES"))


def _format(number: int, *, is_size: bool) -> str:
    for name, unit in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if is_size and number >= unit and number % unit == 0:
            return f"{number // unit} {name}"
    return f"{number:,}{' bytes' if is_size else ''}"


CONFIG_BYTES = Limit("TUNELINE_MAX_CONFIG_BYTES", 2 << 20, "size of a recipe or another YAML or JSON settings file")
CONFIG_NODES = Limit("TUNELINE_MAX_CONFIG_NODES", 100_000, "values in such a file, with aliases expanded")
CONFIG_DEPTH = Limit("TUNELINE_MAX_CONFIG_DEPTH", 64, "nesting depth in such a file")
ROW_BYTES = Limit("TUNELINE_MAX_ROW_BYTES", 64 << 20, "size of one data row")
UNPACKED_RATIO = Limit(
    "TUNELINE_MAX_UNPACKED_RATIO", 200, "decompressed size of a data file divided by its compressed size"
)
UNPACKED_BYTES = Limit("TUNELINE_MIN_UNPACKED_BYTES", 1 << 30, "decompressed size below which the ratio is not checked")
EXAM_BYTES = Limit("TUNELINE_MAX_EXAM_BYTES", 64 << 20, "decompressed size of the file of one exam subject")
EXAM_FILES = Limit("TUNELINE_MAX_EXAM_FILES", 10_000, "files in an exam's zip file")
MODEL_JSON_BYTES = Limit("TUNELINE_MAX_MODEL_JSON_BYTES", 64 << 20, "size of a model's configuration or index file")
TEMPLATE_BYTES = Limit("TUNELINE_MAX_TEMPLATE_BYTES", 1 << 20, "size of a chat template file")
TEMPLATE_STEPS = Limit("TUNELINE_MAX_TEMPLATE_STEPS", 1_000_000, "loop iterations and macro calls per rendering")
TEMPLATE_CHARACTERS = Limit("TUNELINE_MAX_TEMPLATE_CHARACTERS", 64 << 20, "output characters per rendering")
TEMPLATE_SECONDS = Limit("TUNELINE_MAX_TEMPLATE_SECONDS", 60, "seconds per rendering")

ALL = (
    CONFIG_BYTES,
    CONFIG_NODES,
    CONFIG_DEPTH,
    ROW_BYTES,
    UNPACKED_RATIO,
    UNPACKED_BYTES,
    EXAM_BYTES,
    EXAM_FILES,
    MODEL_JSON_BYTES,
    TEMPLATE_BYTES,
    TEMPLATE_STEPS,
    TEMPLATE_CHARACTERS,
    TEMPLATE_SECONDS,
)


def to_markdown() -> str:
    """Return the limits as a Markdown table."""
    lines = ["| Variable | Default | Limits |", "|---|---|---|"]
    for limit in ALL:
        default = _format(limit.default, is_size="_BYTES" in limit.variable)
        lines.append(f"| `{limit.variable}` | {default} | {limit.description} |")
    return "\n".join(lines) + "\n"


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False for a path that is not valid."""
    try:
        return path.is_dir()
    except OSError:
        return False


def special_file_kind(path: Path) -> str:
    """Describe a path that is neither a file nor a folder, without opening it; an empty string for other paths."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG or not path.is_symlink():
            return ""
        return "a link to itself" if error.errno == errno.ELOOP else "a link to a missing file"
    except ValueError:  # a zero byte in the name
        return ""
    kinds = {
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "")


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file; False for a path that is not valid."""
    try:
        return path.is_file()
    except OSError:
        return False


def why_not_a_file(path: Path) -> str:
    """Return why a path is not a file: `file not found: X`, or what it is instead."""
    if kind := special_file_kind(path):
        return f"{path} is {kind}"
    if is_folder(path):
        return f"{path} is a folder, not a file"
    return f"file not found: {path!s:.300}"


def check_file(path: Path) -> None:
    """Check that a path is a regular file, before it is opened.

    Raises:
        SourceError: It is missing, or a folder, a named pipe, a socket or a device.
    """
    if not is_file(path):
        raise SourceError(f"{why_not_a_file(path)}. Give the path of a file.")


def read_text(path: Path, limit: Limit) -> str:
    """Read a small text file.

    Raises:
        SourceError: It is not a regular file, larger than the limit, or not UTF-8.
    """
    check_file(path)
    if (size := path.stat().st_size) > limit.value():
        raise SourceError(f"{path} has {size:,} bytes, and the limit is {limit.to_text()}. {limit.advice()}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text: byte {error.start} cannot be read. Save it as UTF-8.") from None
