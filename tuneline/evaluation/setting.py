"""What scores depend on beside model and question: types and device of the weights, versions of libraries.

All of it belongs to the protocol of a score, so that a new release of a library scores every model again, the champion
too: two models are never compared under different ones.
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from tuneline.model import device

GENERATION_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "bitsandbytes")
"""Packages that have a part in what a model says."""

METRIC_PACKAGES = ("evaluate", "rouge_score", "sacrebleu", "nltk", "jieba", "rouge_chinese")
"""Packages that have a part in how answers are scored."""


def evaluation_setting(dtype: str) -> dict[str, str]:
    """Return how models answer here.

    Args:
        dtype: How weights are held.
    """
    return {"dtype": dtype, "device": device.device_type(), **versions(GENERATION_PACKAGES)}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of installed packages; `absent` stands for the others."""
    return {name: _version(name) for name in packages}


def describe(dtype: str) -> dict[str, str]:
    """Return the same in words, for the report: dtype, device, and the libraries that are installed."""
    about = evaluation_setting(dtype) | versions(METRIC_PACKAGES)
    kinds = {name: about.pop(name) for name in ("dtype", "device")}
    return kinds | {"libraries": ", ".join(f"{name} {each}" for name, each in about.items() if each != "absent")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
