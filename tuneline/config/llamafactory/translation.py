"""State of a translation: the recipe, the origin of its values, differences and errors."""

from typing import Any

from tuneline.config.llamafactory import keys
from tuneline.config.llamafactory.read import LlamaFactoryFile
from tuneline.config.llamafactory.report import ImportReport, MappedValue
from tuneline.config.parsing import located_yaml
from tuneline.config.parsing.located_yaml import Key, Problem
from tuneline.errors import RecipeError

NEUTRAL_REASON = "has its neutral value"
UNREAD_REASON = "not used with these settings, neither by LlamaFactory nor by Tuneline"


class Translation:
    """The translated recipe and its report."""

    def __init__(self, source: LlamaFactoryFile) -> None:
        self.source = source
        self.config = source.config
        self.recipe: dict[str, Any] = {}
        self.report = ImportReport()
        self.problems: list[Problem] = []
        self.other_errors: list[str] = []
        """Errors in other files, with their location."""

        self._origins: dict[Key, str] = {}
        self._used: set[str] = {"do_train"}

    def set_value(self, recipe_key: str, value: Any, *keys: str) -> None:
        """Set a value of the recipe.

        Args:
            recipe_key: Its key, with dots.
            value: Its value.
            keys: The LlamaFactory keys it comes from, the most important first.
        """
        self._write(recipe_key, value, keys)
        set_keys = [key for key in keys if self.config.is_set(key)]
        self.report.mapped.append(MappedValue(recipe_key, value, tuple(set_keys or keys), is_set=bool(set_keys)))

    def set_if_enabled(self, recipe_key: str, value: Any, *keys: str) -> None:
        """Set a value of the recipe unless it is None, False or an empty list."""
        if value not in (None, False, []):
            self.set_value(recipe_key, value, *keys)

    def add(self, recipe_key: str, value: Any, reason: str) -> None:
        """Set a value of the recipe that has no LlamaFactory key."""
        self._write(recipe_key, value, ())
        self.report.added.append((recipe_key, value, reason))

    def note(self, key: str, text: str) -> None:
        """Report that a key has a different meaning in Tuneline."""
        self._used.add(key)
        self.report.differs.append((key, text))

    def refuse(self, key: str, text: str) -> None:
        """Report a key that cannot be imported."""
        self._used.add(key)
        self.problems.append(((key,), text))

    def classify_keys(self) -> None:
        """Classify all keys that are not mapped, according to the table."""
        table, content = keys.table(), self.source.content
        for unsupported in table.unsupported:
            for key in self._non_neutral(unsupported.keys):
                self.refuse(key, f"{content[key]!r} has no counterpart: {unsupported.reason}. {unsupported.fix}.")
        for group in table.differs:
            for key in self._non_neutral(group.keys):
                self.note(key, group.reason)
        for ignored in table.ignored:
            if ignored_keys := [key for key in content if key in ignored.keys]:
                self.report.ignored[ignored.reason] = ignored_keys

    def _non_neutral(self, neutral: dict[str, Any]) -> list[str]:
        """Return the keys that are set to a value other than their neutral value."""
        content = self.source.content
        return [key for key, value in neutral.items() if key in content and not keys.is_neutral(content[key], value)]

    def finish(self) -> None:
        """Raise the collected errors, or report the keys without effect.

        Raises:
            RecipeError: Keys cannot be imported. One line per key, in file order.
        """
        if self.problems or self.other_errors:
            errors = [str(self.source.refuse(self.problems))] if self.problems else []
            raise RecipeError("\n".join([*errors, *self.other_errors]))
        self._report_unused()

    def _report_unused(self) -> None:
        """Report keys without effect."""
        content, table = self.source.content, keys.table()
        groups = [group.keys for group in (*table.unsupported, *table.differs)]
        neutral = [key for group in groups for key in group if key in content and key not in self._non_neutral(group)]
        unread: list[str] = []
        for key in content:
            if key in table.mapped and key not in self._used:
                is_default = getattr(self.config, key) == type(self.config).model_fields[key].default
                (neutral if is_default else unread).append(key)
        for reason, unused in ((NEUTRAL_REASON, neutral), (UNREAD_REASON, unread)):
            if unused:
                self.report.ignored[reason] = unused

    def origin_of(self, key: Key, text: str) -> str | None:
        """Return the LlamaFactory key that caused an error in the recipe.

        Args:
            key: Location of the error in the recipe: a value, a section, or empty for the entire recipe.
            text: Error message, which contains values of a section or keys of the recipe.
        """
        for end in range(len(key), 0, -1):
            if key[:end] in self._origins:
                return self._origins[key[:end]]
        inside = {path: origin for path, origin in self._origins.items() if path[: len(key)] == key}
        by_key = [origin for path, origin in inside.items() if ".".join(map(str, path[len(key) :])) in text]
        by_value = [
            origin for path, origin in inside.items() if str(located_yaml.value_at(self.recipe, path)) in text.split()
        ]
        matches = [*by_key, *by_value]
        return next((match for match in matches if self.config.is_set(match)), next(iter(matches), None))

    def _write(self, recipe_key: str, value: Any, keys: tuple[str, ...]) -> None:
        path = tuple(recipe_key.split("."))
        section = self.recipe
        for part in path[:-1]:
            section = section.setdefault(part, {})
        section[path[-1]] = value
        self._used.update(keys)
        set_keys = [key for key in keys if self.config.is_set(key)]
        if keys:
            self._origins.setdefault(path, (set_keys or list(keys))[0])
