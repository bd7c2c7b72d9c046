"""Formats of the user, `module:function`, with checks of what they return.

A format takes a record and returns a list of messages, or a dict with some of the keys of `schema.content`. Both are
checked like any row.
"""

from typing import Any

from tuneline.config.sections.sources import Tags
from tuneline.config.validation.user_code import FORMAT_KEY, source_file
from tuneline.data import user_code
from tuneline.data.align.formats.base import Format, Record
from tuneline.data.align.formats.standard import EXAMPLE_COLUMNS, read_example
from tuneline.data.schema import Content
from tuneline.errors import DataError, RecipeError, TunelineError


def load_format(name: str, sha256: str = "") -> Format:
    """Import the function behind `module:function` and make a format of it.

    Args:
        name: `module:function`.
        sha256: Hash of its file when the run began; an empty string accepts the file as it is now.

    Raises:
        RecipeError: The module is missing or fails, or has no such function.
    """
    function, path = user_code.load_function(name, FORMAT_KEY, sha256), source_file(name)

    def align_own(record: Record, tags: Tags) -> Content:
        try:
            said = function(record)
        except (TunelineError, KeyboardInterrupt):
            raise
        except SystemExit as error:
            raise RecipeError(
                f"{FORMAT_KEY} {name!r}: {user_code.describe_failure(error, path)}. Return a row, or raise."
            ) from error
        except BaseException as error:
            kind = type(error).__name__
            raise DataError(
                f"{name} failed: {user_code.describe_failure(error, path)}.", f"{name} raised {kind}"
            ) from error
        return _content(name, said, tags)

    return Format(align_own, lambda record: False)


def _content(name: str, said: Any, tags: Tags) -> Content:
    record = {"messages": said} if isinstance(said, list) else said
    if not isinstance(record, dict) or not record.keys() <= EXAMPLE_COLUMNS:
        got = sorted(map(str, record)) if isinstance(record, dict) else f"{type(said).__name__} {said!r:.60}"
        raise DataError(
            f"{name} must return a list of messages, or a dict with keys among {sorted(EXAMPLE_COLUMNS)}, got {got}.",
            f"{name} returned something else",
        )
    return read_example(record, tags)
