"""User-defined formats: `module:function` takes a record and returns messages, or the keys of an example."""

from typing import Any

from tuneline.config.sections.sources import Tags
from tuneline.config.validation.user_code import FORMAT_KEY, source_file
from tuneline.data import user_code
from tuneline.data.align.formats.base import Format, Record
from tuneline.data.align.formats.standard import EXAMPLE_COLUMNS, read_example
from tuneline.data.schema import Content
from tuneline.errors import DataError, RecipeError, TunelineError


def load_format(name: str, sha256: str = "") -> Format:
    """Import `module:function` and make a format of it.

    Args:
        name: `module:function`.
        sha256: Hash of its file at the start of the run; an empty string accepts the current file.

    Raises:
        RecipeError: The module is missing or fails, or has no such function.
    """
    function, path = user_code.load_function(name, FORMAT_KEY, sha256), source_file(name)

    def align_own(record: Record, tags: Tags) -> Content:
        try:
            result = function(record)
        except (TunelineError, KeyboardInterrupt):
            raise
        except SystemExit as error:
            raise RecipeError(
                f"{FORMAT_KEY} {name!r}: {user_code.describe_failure(error, path)}. Return a row, or raise an "
                "exception."
            ) from error
        except BaseException as error:
            kind = type(error).__name__
            raise DataError(
                f"{name} failed: {user_code.describe_failure(error, path)}.", f"{name} raised {kind}"
            ) from error
        return _to_content(name, result, tags)

    return Format(align_own, lambda record: False)


def _to_content(name: str, result: Any, tags: Tags) -> Content:
    record = {"messages": result} if isinstance(result, list) else result
    if not isinstance(record, dict) or not record.keys() <= EXAMPLE_COLUMNS:
        actual = sorted(map(str, record)) if isinstance(record, dict) else f"{type(result).__name__} {result!r:.60}"
        raise DataError(
            f"{name} must return a list of messages, or a dict with keys among {sorted(EXAMPLE_COLUMNS)}, got "
            f"{actual}.",
            f"{name} returned an unsupported value",
        )
    return read_example(record, tags)
