"""The base of every config model."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen config that refuses unknown keys.

    The string below each field is its description: `--help`, the JSON schema and tooltips are all read from it, so it
    is written once and cannot drift.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
