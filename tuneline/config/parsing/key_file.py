"""Read a file with API keys: a YAML mapping of names to keys, each a text or a mapping with limits."""

import logging
import os
import stat
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from tuneline.config.base import Config, Name
from tuneline.config.parsing import located_yaml
from tuneline.errors import RecipeError

logger = logging.getLogger(__name__)

VARIABLE = "TUNELINE_API_KEY"
VARIABLE_NAME = "environment"
"""Name of the key of the environment variable."""

MIN_LENGTH = 16


class KeyEntry(Config):
    """An API key and its limits."""

    key: str = Field(min_length=MIN_LENGTH, max_length=1024, pattern=r"^[!-~]+$", repr=False)
    """The key: at least 16 printable ASCII characters without spaces."""

    requests_per_minute: int | None = Field(None, ge=1, le=10**9)
    """Maximum number of requests in any 60 seconds."""

    max_concurrent: int | None = Field(None, ge=1, le=10**6)
    """Maximum number of requests at the same time."""


def _entry(value: Any) -> Any:
    return {"key": value} if isinstance(value, str) else value


class KeyFile(Config):
    """The content of a key file."""

    keys: dict[Name, Annotated[KeyEntry, BeforeValidator(_entry)]] = Field(min_length=1)


def read_keys(path: Path | None) -> dict[str, KeyEntry]:
    """Return the keys of a file and of the environment variable `TUNELINE_API_KEY`, by name.

    Raises:
        RecipeError: The file is invalid, or two names have the same key. Messages contain no key.
    """
    keys = _read_file(path) if path else {}
    if value := os.environ.get(VARIABLE):
        if len(value) < MIN_LENGTH or not value.isascii() or not value.isprintable() or " " in value:
            raise RecipeError(f"{VARIABLE}: expected at least {MIN_LENGTH} printable ASCII characters without spaces.")
        keys[VARIABLE_NAME] = KeyEntry(key=value)
    names = list(keys)
    for number, name in enumerate(names):
        if twin := next((other for other in names[:number] if keys[other].key == keys[name].key), None):
            raise RecipeError(f"{path or VARIABLE}: {twin} and {name} have the same key. Give each its own.")
    return keys


def _read_file(path: Path) -> dict[str, KeyEntry]:
    document = located_yaml.read(path, description="a file with API keys, one `name: key` per line")
    if path.stat().st_mode & stat.S_IROTH:
        logger.warning("%s can be read by all users of this machine. Restrict it: chmod 600 %s", path, path)
    content, problems = located_yaml.validate(KeyFile, {"keys": document.content}, ())
    if problems or not isinstance(content, KeyFile):
        raise RecipeError("\n".join(document.format_errors((key[1:], _without_value(text)) for key, text in problems)))
    return dict(content.keys)


def _without_value(text: str) -> str:
    """Return a message without the value, which may be a key."""
    return f"{text.partition(', got ')[0].rstrip('.')}. Set a key of at least {MIN_LENGTH} characters without spaces."
