"""Recognize LlamaFactory configuration files by their keys."""

from pathlib import Path

from tuneline.config.parsing import located_yaml
from tuneline.errors import TunelineError

MARKER_KEYS = (
    "model_name_or_path",
    "finetuning_type",
    "stage",
    "do_train",
    "cutoff_len",
    "dataset_dir",
    "infer_backend",
)
"""Keys that identify a LlamaFactory file: one of the first two, or any two."""


DESCRIPTION = "a LlamaFactory configuration file"


def is_llamafactory_config(path: Path) -> bool:
    """Return whether a file is a LlamaFactory configuration; unreadable files are not."""
    try:
        content = located_yaml.read(path, description=DESCRIPTION).content
    except TunelineError:
        return False
    markers = [key for key in MARKER_KEYS if key in content]
    return "parameters" not in content and (any(key in content for key in MARKER_KEYS[:2]) or len(markers) > 1)
