"""Look up the fields that a config model accepts at a location, for `Did you mean` suggestions."""

import types
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

DISCRIMINATORS = {"type": None, "engine": "tuneline"}
"""Keys that discriminate unions, with the value that a missing key means."""


def fields_at(model: type[BaseModel], loc: Sequence[str | int], raw: Any) -> list[str]:
    """Return the field names of the model at `loc`.

    Args:
        model: Root model.
        loc: A pydantic error location without its last part, including union tags.
        raw: The mapping as read from the file; its `type` selects the member of a union.
    """
    here: Any = model
    for part in loc:
        if isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            field = here.model_fields[str(part)]
            here = _unwrap(field.annotation)
        elif isinstance(part, int) and get_origin(here) is list:
            here = _unwrap(get_args(here)[0])
    models = [here] if isinstance(here, type) else [_unwrap(member) for member in get_args(here)]
    kinds = [kind for kind in models if isinstance(kind, type) and issubclass(kind, BaseModel)]
    tagged = [kind for kind in kinds if any(_matches_tag(kind, key, raw or {}) for key in DISCRIMINATORS)]
    return sorted({name for kind in tagged or kinds for name in kind.model_fields})


def _unwrap(annotation: Any) -> Any:
    """Strip `Annotated` and `Optional` from an annotation."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    members = [member for member in get_args(annotation) if member is not type(None)]
    if get_origin(annotation) in (Union, types.UnionType) and len(members) == 1:
        return _unwrap(members[0])
    return annotation


def _matches_tag(kind: type[BaseModel], key: str, raw: Any) -> bool:
    tag = _tag(kind, key)
    return tag is not None and tag == raw.get(key, DISCRIMINATORS[key])


def _tag(kind: type[BaseModel], key: str) -> str | None:
    field = kind.model_fields.get(key)
    return get_args(field.annotation)[0] if field else None
