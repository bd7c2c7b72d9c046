"""Configs of evaluation."""

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
"""Metric of generated answers -> the columns that it makes."""


UNIT_INTERVAL_METRICS = frozenset(
    ["preference_accuracy", *(column for columns in GENERATION_METRICS.values() for column in columns)]
)
"""Metrics of held-out rows whose scores lie between 0 and 1."""

REQUIRED_PACKAGES = {"llamafactory_compat": ("jieba", "rouge_chinese", "nltk")}
"""Metric -> packages that it needs beyond ours."""

_FUNCTION = re.compile(r"[\w.]+:\w+")


def column_name(name: str) -> str:
    """Return the name under which `module:function` stands in tables: the function's."""
    return name.partition(":")[2]


EXAM_PROTOCOL_VERSION = 2
"""Of the prompts and of the scoring of exams; a change of either is another protocol."""


class NoiseConfig(Config):
    """How often answers are drawn for the noise band, and how."""

    num_seeds: int = Field(3, ge=2, le=1000)
    """Draws of each answer, with the seeds 0, 1, ..."""

    temperature: float = Field(1.0, gt=0, le=100)
    """Of the draws."""


class EvaluateConfig(Config):
    """How the base model and the new one are scored."""

    max_new_tokens: int = Field(64, ge=1, le=MAX_TOKENS)
    """Longest answer that is generated; references are never cut."""

    batch_size: int = Field(16, ge=1, le=MAX_BATCH_SIZE)
    """Prompts generated side by side. It changes the speed, not the answers."""

    max_items: int | None = Field(None, ge=5, le=MAX_ROWS)
    """Score this many held-out examples, the first by id; the rest are counted. Null scores all."""

    dtype: AnswersDtype = "auto"
    """How all models that are compared are held while they answer. `auto` takes bfloat16 on a GPU that has it and
    float32 elsewhere. It is part of each score's protocol."""

    metrics: list[str] = Field(["rouge1", "rouge2", "rougeL"], min_length=1)
    """What generated answers are scored by: `rouge1`, `rouge2`, `rougeL`, `rougeLsum`, `bleu`, `chrf`, `exact_match`,
    `token_f1`, `llamafactory_compat` (LlamaFactory's own four, for comparison), or `module:function` of your own, which
    takes `prompts`, `completions` and `references` (lists of texts) and returns a number each."""

    cut: Literal["auto", "words", "characters"] = "auto"
    """How texts are cut into tokens for ROUGE, BLEU and token F1: by words, or by characters, for Chinese, Japanese and
    Korean; `auto` looks at the references. The report names it beside the score."""

    use_stemmer: bool = False
    """Compare English words by their stems in ROUGE, as ROUGE-1.5.5 does with `-m`."""

    noise: NoiseConfig | None = None
    """Draw answers with several seeds, too, and report how far the means lie apart: the noise band."""

    def columns(self) -> list[str]:
        """Return the names of the scores that generated answers get."""
        return [column for name in self.metrics for column in GENERATION_METRICS.get(name, (column_name(name),))]

    @model_validator(mode="after")
    def _metrics_exist(self) -> "EvaluateConfig":
        for name in self.metrics:
            if name not in GENERATION_METRICS and not _FUNCTION.fullmatch(name):
                raise ValueError(
                    f"metrics: there is no metric {name!r}.{did_you_mean(name, GENERATION_METRICS)} Known: "
                    f"{', '.join(GENERATION_METRICS)}; or write module:function for one of your own."
                )
        twice = [name for name, count in Counter(self.columns()).items() if count > 1]
        if twice:
            raise ValueError(f"metrics: two of them are called {twice[0]!r}. Leave one out, or rename your function.")
        return self


class ExamProtocol(Config):
    """How one exam is taken."""

    name: str
    num_shots: int
    benchmark: Benchmark = "mmlu"
    max_questions: int | None = None

    @property
    def protocol(self) -> str:
        """The pinned name of the way in which questions are put and scored, like `mmlu, 5 shots, letters, 2`."""
        return f"{self.benchmark}, {self.num_shots} shots, letters, {EXAM_PROTOCOL_VERSION}"


class EvaluateStepConfig(EvaluateConfig):
    """The slice of the recipe that `evaluate` sees."""

    exams: list[ExamProtocol] = Field(default_factory=list)
    harness: list[LmEvalConfig] = Field(default_factory=list)
    """Tasks of lm-evaluation-harness."""

    window: int = Field(2048, ge=2, le=MAX_TOKENS)
    """Tokens of one forward pass where held-out texts are scored: those of a training row."""

    load: ModelLoadOptions = ModelLoadOptions()
    """How the models are held that answer."""

    reward_model: LocalPath | None = None
    """Folder of the reward model that judges answers."""

    reward_function: str | None = None
    reward_function_hash: str = ""
    metric_hashes: dict[str, str] = Field(default_factory=dict)
    """`module:function` -> hash of its source, so that a changed metric scores again."""

    @property
    def judged(self) -> bool:
        """Something gives answers a reward."""
        return self.reward_model is not None or self.reward_function is not None
