"""A model in two parts: an adapter that has no merged form, with its base beside it in one folder.

The folder stands alone: whoever answers with it, registers it or rolls back to it needs nothing else. The base's files
are hard links where the file system has them, so that they take no room.
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
    """Lay an adapter and its base into an empty folder.

    Args:
        target: Gets the adapter's files, the base's below `base_model/`, and how to load them.
        adapter: What a training saved.
        base_model: Weights, and behind them the adapters that were folded in before training.
        config: How the base was held in training.
    """
    shutil.copytree(adapter, target, dirs_exist_ok=True)
    base, adapters = base_model.items[0], source.adapter_items(base_model)
    merged = [item for item, use in zip(adapters, config.uses, strict=True) if use == "merge"]
    _link(base.paths(), Path(base.location), target / BASE_FOLDER)
    for number, item in enumerate(merged):
        _link(item.paths(), Path(item.location), target / BASE_FOLDER / f"adapter_{number}")
    about = config.model_copy(update={"uses": ["merge" for _ in merged], "gradient_checkpointing": "none"})
    (target / LOAD_CONFIG_FILE).write_text(about.model_dump_json(indent=1) + "\n")


def is_adapter_bundle(folder: Path) -> bool:
    """Tell whether a model directory holds an adapter with its base beside it."""
    return (folder / LOAD_CONFIG_FILE).is_file()


def read_load_config(folder: Path) -> LoadStepConfig:
    """Return how the base of such a folder is to be held."""
    return LoadStepConfig.model_validate(json.loads((folder / LOAD_CONFIG_FILE).read_text()))


def adapter_folders(folder: Path) -> list[Path]:
    """Return the adapters that are folded into the base first, in order."""
    return [folder / BASE_FOLDER / f"adapter_{number}" for number in range(len(read_load_config(folder).uses))]


def _link(paths: Iterable[Path], base: Path, target: Path) -> None:
    for path in paths:
        place = target / path.relative_to(base)
        place.parent.mkdir(parents=True, exist_ok=True)
        filesystem.link_or_copy(path, place)
