"""A prediction: which rows, which model, how answers are generated and scored."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from tuneline.config.base import MAX_SEED, MAX_TOKENS, Config
from tuneline.config.sections.sources import AlignConfig, SourceConfig
from tuneline.errors import RecipeError

METRICS = ("rouge1", "rouge2", "rougeL", "exact_match", "token_f1")
"""Metrics of a prediction, unless others are set."""


class GenerationSettings(Config):
    """How answers are generated. Other settings give other answers."""

    max_new_tokens: int = Field(512, ge=1, le=MAX_TOKENS)
    """Maximum number of tokens per answer."""

    temperature: float = Field(0.0, ge=0, le=100)
    """Sampling temperature; 0 decodes greedily."""

    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed of the sampling. The answer to a row depends on the seed and its prompt, not on the other rows."""

    def as_options(self) -> dict[str, Any]:
        """Return the fields of a request to a server."""
        sampled = {"seed": self.seed} if self.temperature else {}
        return {"max_tokens": self.max_new_tokens, "temperature": self.temperature, **sampled}


@dataclass(frozen=True)
class PredictJob:
    """Everything that a prediction needs but the model."""

    source: SourceConfig
    output: Path
    align: AlignConfig = field(default_factory=AlignConfig)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    batch_size: int = 16
    """Prompts per batch, or requests at the same time. Affects speed, not answers."""

    metrics: tuple[str, ...] = METRICS
    restart: bool = False
    """Delete the answers in the output file instead of resuming."""

    @property
    def scores_path(self) -> Path:
        """File of the scores."""
        return self.output.with_suffix(".scores.json")


@dataclass(frozen=True)
class ModelIdentity:
    """The model that answers, for the output file."""

    name: str
    """Resolved name: `demo/7`, a folder, or the name on the server."""

    content_hash: str = ""
    """Hash of weights and tokenizer; empty for a server."""

    url: str = ""
    dtype: str = ""

    def settings(self) -> dict[str, str]:
        """Return what must not change while a prediction is resumed; the hash of a model implies its name."""
        if self.url:
            return {"url": self.url, "model": self.name}
        return {"model": self.name, "model_hash": self.content_hash, "dtype": self.dtype}


@dataclass(frozen=True)
class Prediction:
    """The answer to a row."""

    answer: str
    finish_reason: Literal["stop", "length", "tool_calls"]
    tokens: int
    """Number of generated tokens."""

    model: str
    """Version that answered."""

    tool_calls: tuple[dict[str, Any], ...] = ()
    reasoning: str = ""


def generation_settings(values: dict[str, Any]) -> GenerationSettings:
    """Validate the settings of the command line.

    Raises:
        RecipeError: A value is not in range.
    """
    try:
        return GenerationSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise RecipeError(f"--{option}: {first['msg']}, got {first['input']!r}. Correct the value.") from None


def align_policy(system: str | None, bad_rows: Literal["refuse", "drop"]) -> AlignConfig:
    """Return the policy for rows."""
    return AlignConfig(system=system, bad_rows=bad_rows)
