"""Configs of evaluation and promotion."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from tuneline.config.base import Config
from tuneline.config.exams import Benchmark
from tuneline.config.loader import Holding

Metric = Literal[
    "rouge1", "rouge2", "rougeL", "log_likelihood", "preference_accuracy", "signed_log_likelihood", "reward"
]

LETTERS_VERSION = 1
"""Of the prompts and of the scoring of exams; a change of either is another protocol."""


class EvaluateConfig(Config):
    """How the base model and the new one are scored."""

    max_new_tokens: int = Field(64, ge=1)
    """Longest answer that is generated; references are never cut."""

    batch_size: int = Field(16, ge=1)
    """Prompts generated side by side. It changes the speed, not the answers."""

    max_items: int | None = Field(None, ge=5)
    """Score this many held-out examples, the first by id; the rest are counted. Null scores all."""


class ExamProtocol(Config):
    """How one exam is taken."""

    name: str
    num_shots: int
    benchmark: Benchmark = "mmlu"
    max_questions: int | None = None

    @property
    def protocol(self) -> str:
        """The pinned name of the way in which questions are put and scored, like `mmlu, 5 shots, letters, 1`."""
        return f"{self.benchmark}, {self.num_shots} shots, letters, {LETTERS_VERSION}"


class EvaluateStepConfig(EvaluateConfig):
    """The slice of the recipe that `evaluate` sees."""

    exams: list[ExamProtocol] = Field(default_factory=list)
    window: int = Field(2048, ge=2)
    """Tokens of one forward pass where held-out texts are scored: those of a training row."""

    load: Holding = Holding()
    """How the models are held that answer."""

    reward_model: Path | None = None
    """Folder of the reward model that judges answers."""

    reward_function: str | None = None
    reward_function_hash: str = ""

    @property
    def judged(self) -> bool:
        """Something gives answers a reward."""
        return self.reward_model is not None or self.reward_function is not None


class GateConfig(Config):
    """What a new model must prove before it is promoted (docs/decisions/0003)."""

    metric: Metric = "rougeL"
    """Target: the mean over held-out items that must rise. ROUGE is for chats, `log_likelihood` (nats a token) for
    texts, `preference_accuracy` (the chosen answer is the likelier one) for pairs, `signed_log_likelihood` for answers
    with labels, `reward` where something judges answers (`ppo`, `grpo`)."""

    min_gain: float = Field(0.0, ge=0)
    """The lower end of the gain's interval must lie above this; 0.01 is one point of ROUGE, or 0.01 nats."""

    level: float = Field(0.95, gt=0.5, lt=1)
    """One-sided confidence of the paired bootstrap."""

    num_resamples: int = Field(5000, ge=1000)
    """Bootstrap resamples."""


class RegisterConfig(Config):
    """Under which name a model is registered, and which gate it meets."""

    model_name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name in the MLflow model registry."""

    gate: GateConfig = GateConfig()
    """The gate."""
