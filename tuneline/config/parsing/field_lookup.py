"""Ask a config model which keys it knows at a place; used to say `did you mean`."""

import types
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

DISCRIMINATORS = {"type": None, "engine": "tuneline"}
"""Keys that tell the members of a union apart, with what an absent one means."""


def fields_at(model: type[BaseModel], loc: Sequence[str | int], written: Any) -> list[str]:
    """Return the field names of the model that `loc` leads to.

    Args:
        model: Where to start.
        loc: A pydantic error location without its last part; tags of unions are part of it.
        written: The mapping as the user wrote it; its `type` tells the members of a union apart.
    """
    here: Any = model
    for part in loc:
        if isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            field = here.model_fields[str(part)]
            here = _plain(field.annotation)
        elif isinstance(part, int) and get_origin(here) is list:
            here = _plain(get_args(here)[0])
    models = [here] if isinstance(here, type) else [_plain(member) for member in get_args(here)]
    kinds = [kind for kind in models if isinstance(kind, type) and issubclass(kind, BaseModel)]
    tagged = [kind for kind in kinds if any(_is_meant(kind, key, written or {}) for key in DISCRIMINATORS)]
    return sorted({name for kind in tagged or kinds for name in kind.model_fields})


def _plain(annotation: Any) -> Any:
    """Peel `Annotated` and optional unions off an annotation."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    members = [member for member in get_args(annotation) if member is not type(None)]
    if get_origin(annotation) in (Union, types.UnionType) and len(members) == 1:
        return _plain(members[0])
    return annotation


def _is_meant(kind: type[BaseModel], key: str, written: Any) -> bool:
    tag = _tag(kind, key)
    return tag is not None and tag == written.get(key, DISCRIMINATORS[key])


def _tag(kind: type[BaseModel], key: str) -> str | None:
    field = kind.model_fields.get(key)
    return get_args(field.annotation)[0] if field else None
