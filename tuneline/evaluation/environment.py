"""The evaluation setting: data type, device and library versions that scores depend on.

It is part of every protocol. A new library release therefore scores every model again, including the champion, and two
models are never compared under different versions.
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from tuneline.model import device

GENERATION_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "bitsandbytes")
"""Packages that affect a model's output."""

METRIC_PACKAGES = ("evaluate", "rouge_score", "sacrebleu", "nltk", "jieba", "rouge_chinese")
"""Packages that affect how outputs are scored."""


def evaluation_setting(dtype: str) -> dict[str, str]:
    """Return data type, device and versions of the packages that affect a model's output.

    Args:
        dtype: Data type of the weights.
    """
    return {"dtype": dtype, "device": device.device_type(), **versions(GENERATION_PACKAGES)}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return package versions; `absent` for packages that are not installed."""
    return {name: _version(name) for name in packages}


def describe(dtype: str) -> dict[str, str]:
    """Return data type, device and installed libraries as text for the report."""
    entries = evaluation_setting(dtype) | versions(METRIC_PACKAGES)
    kinds = {name: entries.pop(name) for name in ("dtype", "device")}
    return kinds | {"libraries": ", ".join(f"{name} {each}" for name, each in entries.items() if each != "absent")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
