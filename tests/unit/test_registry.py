"""Registries: lookup by name, and suggestions for unknown names."""

import pytest

from tuneline.errors import NotFoundError
from tuneline.registry import Registry


def test_an_entry_is_found_by_its_name():
    things = Registry("thing")
    things.register("one")(1)

    assert things["one"] == 1
    assert list(things) == ["one"]


def test_a_name_cannot_be_registered_twice():
    things = Registry("thing")
    things.register("one")(1)

    with pytest.raises(ValueError, match="thing 'one' is registered twice"):
        things.register("one")(2)


def test_an_unknown_name_suggests_the_nearest_and_lists_all():
    things = Registry("thing")
    things.register("lora")(1)

    with pytest.raises(NotFoundError, match=r"Unknown thing 'loar'. Did you mean 'lora'\? Known: lora."):
        things["loar"]
