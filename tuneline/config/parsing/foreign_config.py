"""Recognize configuration files of LlamaFactory by their keys."""

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
"""Keys that tell a file of LlamaFactory: one of the first two, or two of all."""

DESCRIPTION = "a configuration file of LlamaFactory"


def is_llamafactory_config(path: Path) -> bool:
    """Tell whether a file is one of LlamaFactory's; one that cannot be read is not."""
    try:
        content = located_yaml.read(path, what=DESCRIPTION).content
    except TunelineError:
        return False
    marks = [mark for mark in MARKER_KEYS if mark in content]
    return "parameters" not in content and (any(mark in content for mark in MARKER_KEYS[:2]) or len(marks) > 1)
