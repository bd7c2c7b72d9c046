"""Recognize configuration files of LlamaFactory by their keys."""

from pathlib import Path

from tuneline.config.parsing import located_yaml
from tuneline.errors import TunelineError

MARKS = ("model_name_or_path", "finetuning_type", "stage", "do_train", "cutoff_len", "dataset_dir", "infer_backend")
"""Keys that tell a file of LlamaFactory: one of the first two, or two of all."""

WHAT = "a configuration file of LlamaFactory"


def is_theirs(path: Path) -> bool:
    """Tell whether a file is one of LlamaFactory's; one that cannot be read is not."""
    try:
        content = located_yaml.read(path, what=WHAT).content
    except TunelineError:
        return False
    marks = [mark for mark in MARKS if mark in content]
    return "parameters" not in content and (any(mark in content for mark in MARKS[:2]) or len(marks) > 1)
