"""Registries of objects that a recipe selects by name."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tuneline.errors import NotFoundError

T = TypeVar("T")


class Registry(Generic[T]):
    """Named objects of one kind, registered by decorator when their module is imported.

    >>> greetings = Registry("greeting")
    >>> @greetings.register("plain")
    ... def plain(name): return f"Hello {name}"
    >>> greetings["plain"]("you")
    'Hello you'
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its target as `name`."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice.")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise NotFoundError.among(self.kind, name, self._entries) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
