"""What a gate may ask for: metrics that must rise, metrics that must not fall, and what must hold of the model itself.

A gate is written in a recipe (`registry.gate`), or in a file of its own that recipes name: `registry.gate:
gates/strict.yaml`, relative to the recipe. The file holds the same keys.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from tuneline import limits
from tuneline.config.base import Config
from tuneline.config.parsing import located_yaml
from tuneline.config.parsing.located_yaml import Document, Key, Problem
from tuneline.errors import RecipeError


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise ValueError(f"{list(ends)} must be the smallest score, then the largest, like [0, 1].")
    return ends


ScoreRange = Annotated[tuple[float, float], AfterValidator(_ascending)]


class TargetConfig(Config):
    """A metric that must rise."""

    metric: str
    """Name in the report: one of the held-out rows, like rougeL, or of an exam, like mmlu_accuracy."""

    min_effect: float = Field(0.0, ge=0, le=1e6)
    """What the gain must surely exceed; 0.01 is one point of ROUGE or of right answers."""

    score_range: ScoreRange | None = None
    """Smallest and largest possible score of an item. Null: 0 to 1 for text metrics and accuracies, and for others
    (likelihoods, rewards, functions of your own) the smallest and largest score of either model."""


class GuardConfig(Config):
    """A metric that must not fall by a margin: the new model may be a little worse, and must surely not be more."""

    metric: str
    """Name in the report: one of the held-out rows, like rougeL, or of an exam, like mmlu_accuracy."""

    margin: float = Field(gt=0, le=1e6)
    """Loss that is tolerated; 0.02 is two points of ROUGE or of right answers."""

    score_range: ScoreRange | None = None
    """Smallest and largest possible score of an item. Null: 0 to 1 for text metrics and accuracies, and for others
    (likelihoods, rewards, functions of your own) the smallest and largest score of either model."""


class PreconditionsConfig(Config):
    """What must hold of a model before its scores count."""

    template_parity: bool = True
    """Tokenizer and chat template beside the weights are, byte by byte, those that the training rows were made with."""

    max_kl: float | None = Field(None, gt=0, le=100)
    """Largest mean KL divergence (nats a token) of the merged model from the adapter; null: `merge_adapter.max_kl`."""

    min_greedy_agreement: float = Field(0.9, ge=0, le=1)
    """Smallest share of positions at which the merged model's likeliest token is the adapter's."""

    min_coverage: float = Field(0.001, ge=0, le=1)
    """Smallest share of training tokens that carry loss; not asked of prompts, whose answers are made in training."""


SINGLE = ("metric", "min_gain")
"""Keys of a gate with one target; they say the same as one entry of `targets`."""


def expand(document: Document, raw: dict[str, Any]) -> list[str]:
    """Put a gate that stands in a file of its own into the recipe, and look at what only the written keys can tell.

    Args:
        document: The recipe's file.
        raw: The recipe in it; changed in place. A wrong gate is taken out, so that it is told once.

    Returns:
        What is wrong, one line a mistake.
    """
    registry = raw.get("registry")
    gate = registry.get("gate") if isinstance(registry, dict) else None
    here: Key = (*document.inside, "registry", "gate")
    if isinstance(gate, dict):
        return document.tell(((*here, *key), text) for key, text in written_twice(gate))
    if not isinstance(registry, dict) or not isinstance(gate, str):
        return []
    path = Path(located_yaml.absolute(gate, document.path.resolve().parent))
    if not limits.is_file(path):
        del registry["gate"]
        text = f"{limits.no_file(path)}. Give the path of a gate, relative to the recipe, or write the gate here."
        return document.tell([(here, text)])
    registry["gate"], told = _checked(path)
    return told


def read(path: Path) -> dict[str, Any]:
    """Read the file of a gate, checked.

    Raises:
        RecipeError: One line for each mistake.
    """
    content, told = _checked(path)
    if told:
        raise RecipeError("\n".join(told))
    return content


def _checked(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return a gate's keys, none where they are wrong, and its mistakes with their lines."""
    from tuneline.config.sections.evaluate import GateConfig

    try:
        document = located_yaml.read(path, what="a gate, like configs/gates/strict.yaml")
    except RecipeError as error:
        return {}, str(error).splitlines()
    problems = written_twice(document.content)
    if not problems:
        _, problems = located_yaml.check(GateConfig, document.content, ())
    return ({} if problems else document.content), document.tell(problems)


def written_twice(gate: Mapping[str, Any]) -> list[Problem]:
    """Find targets that are written both ways."""
    if not gate.get("targets"):
        return []
    return [
        ((key,), f"stands beside targets, which say the same. Write it as an entry of targets, or leave {key} out.")
        for key in SINGLE
        if key in gate
    ]
