"""Config of step `evaluate`: metrics, generation and exams."""

import re
from collections import Counter
from typing import Literal

from pydantic import Field, model_validator

from tuneline.config.base import MAX_BATCH_SIZE, MAX_ROWS, MAX_TOKENS, Config, LocalPath
from tuneline.config.sections.exams import Benchmark
from tuneline.config.sections.lm_eval import LmEvalConfig
from tuneline.config.sections.load import ModelLoadOptions
from tuneline.errors import did_you_mean

AnswersDtype = Literal["auto", "float32", "bfloat16", "float16"]

METRICS_KEY = "evaluate.metrics"
GENERATION_METRICS: dict[str, tuple[str, ...]] = {
    **{
        name: (name,) for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf", "exact_match", "token_f1")
    },
    "llamafactory_compat": tuple(f"llamafactory_{kind}" for kind in ("rouge1", "rouge2", "rougeL", "bleu4")),
}
"""Metric of generated answers -> its columns in the report."""


UNIT_INTERVAL_METRICS = frozenset(
    ["preference_accuracy", *(column for columns in GENERATION_METRICS.values() for column in columns)]
)
"""Metrics of held-out rows with scores between 0 and 1."""

REQUIRED_PACKAGES = {"llamafactory_compat": ("jieba", "rouge_chinese", "nltk")}
"""Metric -> optional packages that it requires."""

_FUNCTION = re.compile(r"[\w.]+:\w+")


def column_name(name: str) -> str:
    """Return the report's name of a custom metric `module:function`: the function's name."""
    return name.partition(":")[2]


EXAM_PROTOCOL_VERSION = 2
"""Version of the exam prompts and scoring. Increase it with every change, so that scores are not compared across
versions."""


class NoiseConfig(Config):
    """Sampling of answers for the noise band."""

    num_seeds: int = Field(3, ge=2, le=1000)
    """Number of samples per answer, with seeds 0, 1, ..."""

    temperature: float = Field(1.0, gt=0, le=100)
    """Sampling temperature."""


class EvaluateConfig(Config):
    """How the base model and the new model are evaluated."""

    max_new_tokens: int = Field(64, ge=1, le=MAX_TOKENS)
    """Maximum number of generated tokens per answer. References are never truncated."""

    batch_size: int = Field(16, ge=1, le=MAX_BATCH_SIZE)
    """Prompts per generation batch. Affects speed, not answers."""

    max_items: int | None = Field(None, ge=5, le=MAX_ROWS)
    """Maximum number of held-out examples to score, the first ones by id. The remaining ones are counted. Null scores
    all."""

    dtype: AnswersDtype = "auto"
    """Data type of all compared models during generation. `auto` uses bfloat16 on GPUs that support it and float32
    otherwise. Part of each score's protocol."""

    metrics: list[str] = Field(["rouge1", "rouge2", "rougeL"], min_length=1)
    """Metrics of generated answers: `rouge1`, `rouge2`, `rougeL`, `rougeLsum`, `bleu`, `chrf`, `exact_match`,
    `token_f1`, `llamafactory_compat` (LlamaFactory's ROUGE and BLEU-4, for comparison), or a custom `module:function`
    that takes `prompts`, `completions` and `references` (lists of strings) and returns one number per completion."""

    cut: Literal["auto", "words", "characters"] = "auto"
    """Tokenization for ROUGE, BLEU and token F1: `words`, or `characters` for Chinese, Japanese and Korean. `auto`
    decides by the references. The report shows the choice next to the score."""

    use_stemmer: bool = False
    """Apply Porter stemming to English words in ROUGE, as ROUGE-1.5.5 does with `-m`."""

    noise: NoiseConfig | None = None
    """Additionally sample answers with several seeds and report the spread of the mean scores as a noise band."""

    def columns(self) -> list[str]:
        """Return the score columns of generated answers."""
        return [column for name in self.metrics for column in GENERATION_METRICS.get(name, (column_name(name),))]

    @model_validator(mode="after")
    def _metrics_exist(self) -> "EvaluateConfig":
        for name in self.metrics:
            if name not in GENERATION_METRICS and not _FUNCTION.fullmatch(name):
                raise ValueError(
                    f"metrics: unknown metric {name!r}.{did_you_mean(name, GENERATION_METRICS)} Known: "
                    f"{', '.join(GENERATION_METRICS)}; or module:function for a custom metric."
                )
        duplicates = [name for name, count in Counter(self.columns()).items() if count > 1]
        if duplicates:
            raise ValueError(
                f"metrics: two metrics have the name {duplicates[0]!r}. Remove one, or rename your function."
            )
        return self


class ExamProtocol(Config):
    """Protocol of one exam."""

    name: str
    num_shots: int
    benchmark: Benchmark = "mmlu"
    max_questions: int | None = None

    @property
    def protocol(self) -> str:
        """Name of the prompt format and scoring, like `mmlu, 5 shots, letters, 2`."""
        return f"{self.benchmark}, {self.num_shots} shots, letters, {EXAM_PROTOCOL_VERSION}"


class EvaluateStepConfig(EvaluateConfig):
    """Config of step `evaluate`."""

    exams: list[ExamProtocol] = Field(default_factory=list)
    harness: list[LmEvalConfig] = Field(default_factory=list)
    """lm-evaluation-harness tasks."""

    window: int = Field(2048, ge=2, le=MAX_TOKENS)
    """Tokens per forward pass when held-out texts are scored: the training `max_length`."""

    load: ModelLoadOptions = ModelLoadOptions()
    """How the evaluated models are loaded."""

    reward_model: LocalPath | None = None
    """Folder of the reward model that scores completions."""

    reward_function: str | None = None
    reward_function_hash: str = ""
    metric_hashes: dict[str, str] = Field(default_factory=dict)
    """`module:function` -> hash of its source, so that a modified metric is computed again."""

    @property
    def has_reward(self) -> bool:
        """Whether a reward model or reward function scores completions."""
        return self.reward_model is not None or self.reward_function is not None
