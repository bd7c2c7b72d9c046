"""Adapter bundle: a folder with an adapter that cannot be merged and its base model.

The folder is self-contained, for inference, registration and rollback. The base's files are hard links if the file
system supports them, so they take no space.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from tuneline import filesystem
from tuneline.config.sections.load import LoadStepConfig
from tuneline.identity import Manifest
from tuneline.model import source

BASE_FOLDER = "base_model"
LOAD_CONFIG_FILE = "adapter_base.json"


def write_bundle(target: Path, adapter: Path, base_model: Manifest, config: LoadStepConfig) -> None:
    """Write an adapter and its base into an empty folder.

    Args:
        target: Folder for the adapter's files, the base's files below `base_model/`, and the load options.
        adapter: Adapter folder of a training.
        base_model: Weights, followed by the adapters that were merged before training.
        config: Load options of the training.
    """
    shutil.copytree(adapter, target, dirs_exist_ok=True)
    base, adapters = base_model.items[0], source.adapter_items(base_model)
    merged = [item for item, use in zip(adapters, config.uses, strict=True) if use == "merge"]
    _link(base.paths(), Path(base.location), target / BASE_FOLDER)
    for number, item in enumerate(merged):
        _link(item.paths(), Path(item.location), target / BASE_FOLDER / f"adapter_{number}")
    load_config = config.model_copy(update={"uses": ["merge" for _ in merged], "gradient_checkpointing": "none"})
    (target / LOAD_CONFIG_FILE).write_text(load_config.model_dump_json(indent=1) + "\n")


def is_adapter_bundle(folder: Path) -> bool:
    """Return whether a model directory is an adapter bundle."""
    return (folder / LOAD_CONFIG_FILE).is_file()


def read_load_config(folder: Path) -> LoadStepConfig:
    """Return the load options of the base model in an adapter bundle."""
    return LoadStepConfig.model_validate(json.loads((folder / LOAD_CONFIG_FILE).read_text()))


def adapter_folders(folder: Path) -> list[Path]:
    """Return the adapters to merge into the base model first, in order."""
    return [folder / BASE_FOLDER / f"adapter_{number}" for number in range(len(read_load_config(folder).uses))]


def _link(paths: Iterable[Path], base: Path, target: Path) -> None:
    for path in paths:
        destination = target / path.relative_to(base)
        destination.parent.mkdir(parents=True, exist_ok=True)
        filesystem.link_or_copy(path, destination)
