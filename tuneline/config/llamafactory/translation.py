"""What a translation writes down on its way: values of the recipe, where they come from, and what is to be told."""

from typing import Any

from tuneline.config.llamafactory import keys
from tuneline.config.llamafactory.read import LlamaFactoryFile
from tuneline.config.llamafactory.report import ImportReport, MappedValue
from tuneline.config.parsing import located_yaml
from tuneline.config.parsing.located_yaml import Key, Problem
from tuneline.errors import RecipeError

NEUTRAL_REASON = "it has its neutral value"
UNREAD_REASON = "nothing reads it with these settings, nor does LlamaFactory"


class Translation:
    """The recipe that comes into being, and the report of it."""

    def __init__(self, theirs: LlamaFactoryFile) -> None:
        self.theirs = theirs
        self.written = theirs.written
        self.recipe: dict[str, Any] = {}
        self.report = ImportReport()
        self.problems: list[Problem] = []
        self.others: list[str] = []
        """Mistakes in other files, with their places."""
        self._origin: dict[Key, str] = {}
        self._read: set[str] = {"do_train"}

    def put(self, ours: str, value: Any, *theirs: str) -> None:
        """Write a value into the recipe.

        Args:
            ours: Its key, with dots.
            value: What it is.
            theirs: The keys that it comes from, the most important first.
        """
        self._write(ours, value, theirs)
        asked = [key for key in theirs if self.written.is_written(key)]
        self.report.taken.append(MappedValue(ours, value, tuple(asked or theirs), written=bool(asked)))

    def put_if(self, ours: str, value: Any, *theirs: str) -> None:
        """Write a value that says something: not one that is off."""
        if value not in (None, False, []):
            self.put(ours, value, *theirs)

    def add(self, ours: str, value: Any, why: str) -> None:
        """Write a value that LlamaFactory has no key for."""
        self._write(ours, value, ())
        self.report.added.append((ours, value, why))

    def tell(self, key: str, text: str) -> None:
        """Report that a key means something else here."""
        self._read.add(key)
        self.report.differs.append((key, text))

    def refuse(self, key: str, text: str) -> None:
        """Report a key that cannot be imported."""
        self._read.add(key)
        self.problems.append(((key,), text))

    def look_up(self) -> None:
        """Judge every key that nothing is made of, by the table."""
        table, content = keys.table(), self.theirs.content
        for missing in table.no_counterpart:
            for key in self._said(missing.keys):
                self.refuse(key, f"{content[key]!r} has no counterpart: {missing.because}. {missing.instead}.")
        for group in table.differs:
            for key in self._said(group.keys):
                self.tell(key, group.because)
        for harmless in table.ignored:
            if found := [key for key in content if key in harmless.keys]:
                self.report.ignored[harmless.because] = found

    def _said(self, neutral: dict[str, Any]) -> list[str]:
        """Return the keys that are written with other than their neutral value."""
        content = self.theirs.content
        return [key for key, value in neutral.items() if key in content and not keys.is_neutral(content[key], value)]

    def settle(self) -> None:
        """Refuse the file if anything was wrong, or tell of keys that say nothing with these settings.

        Raises:
            RecipeError: One line for each key that cannot be imported, in the order of the file.
        """
        if self.problems or self.others:
            told = [str(self.theirs.refuse(self.problems))] if self.problems else []
            raise RecipeError("\n".join([*told, *self.others]))
        self._tell_the_rest()

    def _tell_the_rest(self) -> None:
        """Tell of keys that say nothing."""
        content, table = self.theirs.content, keys.table()
        judged = [group.keys for group in (*table.no_counterpart, *table.differs)]
        neutral = [key for group in judged for key in group if key in content and key not in self._said(group)]
        unread: list[str] = []
        for key in content:
            if key in table.taken and key not in self._read:
                is_default = getattr(self.written, key) == type(self.written).model_fields[key].default
                (neutral if is_default else unread).append(key)
        for why, found in ((NEUTRAL_REASON, neutral), (UNREAD_REASON, unread)):
            if found:
                self.report.ignored[why] = found

    def origin_of(self, key: Key, text: str) -> str | None:
        """Return the key of theirs that a mistake in the recipe comes from.

        Args:
            key: Where it is in the recipe: a value, a section, or nothing for the whole.
            text: What is wrong, which names values of a section, or keys of the recipe.
        """
        for end in range(len(key), 0, -1):
            if key[:end] in self._origin:
                return self._origin[key[:end]]
        inside = {path: theirs for path, theirs in self._origin.items() if path[: len(key)] == key}
        named = [theirs for path, theirs in inside.items() if ".".join(map(str, path[len(key) :])) in text]
        by_value = [
            theirs for path, theirs in inside.items() if str(located_yaml.value_at(self.recipe, path)) in text.split()
        ]
        found = [*named, *by_value]
        return next((each for each in found if self.written.is_written(each)), next(iter(found), None))

    def _write(self, ours: str, value: Any, theirs: tuple[str, ...]) -> None:
        path = tuple(ours.split("."))
        here = self.recipe
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = value
        self._read.update(theirs)
        asked = [key for key in theirs if self.written.is_written(key)]
        if theirs:
            self._origin.setdefault(path, (asked or list(theirs))[0])
