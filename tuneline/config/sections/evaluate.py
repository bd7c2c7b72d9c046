"""Configs of evaluation and promotion."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from tuneline.config.base import MAX_BATCH_SIZE, MAX_ROWS, MAX_TOKENS, Config, LocalPath, ModelName
from tuneline.config.sections.exams import Benchmark
from tuneline.config.sections.gate import GuardConfig, PreconditionsConfig, TargetConfig
from tuneline.config.sections.lm_eval import HarnessConfig
from tuneline.config.sections.load import Holding
from tuneline.errors import did_you_mean

Metric = str
"""Name of something that is measured; the recipe says what that is, and refuses other names."""

AnswersDtype = Literal["auto", "float32", "bfloat16", "float16"]

CUSTOM_KEY = "evaluate.metrics"
GENERATED: dict[str, tuple[str, ...]] = {
    **{
        name: (name,) for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf", "exact_match", "token_f1")
    },
    "llamafactory_compat": tuple(f"llamafactory_{kind}" for kind in ("rouge1", "rouge2", "rougeL", "bleu4")),
}
"""Metric of generated answers -> the columns that it makes."""

JUDGED_BY = ("reward", "rougeL", "preference_accuracy", "signed_log_likelihood", "log_likelihood")
"""What a gate asks for that names no metric: the first of these that is measured."""

ZERO_TO_ONE = frozenset(["preference_accuracy", *(column for columns in GENERATED.values() for column in columns)])
"""Metrics of held-out rows whose scores lie between 0 and 1."""

NEEDS = {"llamafactory_compat": ("jieba", "rouge_chinese", "nltk")}
"""Metric -> packages that it needs beyond ours."""

_FUNCTION = re.compile(r"[\w.]+:\w+")


def column_of(name: str) -> str:
    """Return the name under which `module:function` stands in tables: the function's."""
    return name.partition(":")[2]


LETTERS_VERSION = 2
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
        return [column for name in self.metrics for column in GENERATED.get(name, (column_of(name),))]

    @model_validator(mode="after")
    def _metrics_exist(self) -> "EvaluateConfig":
        for name in self.metrics:
            if name not in GENERATED and not _FUNCTION.fullmatch(name):
                raise ValueError(
                    f"metrics: there is no metric {name!r}.{did_you_mean(name, GENERATED)} Known: "
                    f"{', '.join(GENERATED)}; or write module:function for one of your own."
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
        return f"{self.benchmark}, {self.num_shots} shots, letters, {LETTERS_VERSION}"


class EvaluateStepConfig(EvaluateConfig):
    """The slice of the recipe that `evaluate` sees."""

    exams: list[ExamProtocol] = Field(default_factory=list)
    harness: list[HarnessConfig] = Field(default_factory=list)
    """Tasks of lm-evaluation-harness."""

    window: int = Field(2048, ge=2, le=MAX_TOKENS)
    """Tokens of one forward pass where held-out texts are scored: those of a training row."""

    load: Holding = Holding()
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


class GateConfig(Config):
    """What a new model must prove before it is promoted (docs/decisions/0003 and 0014)."""

    metric: Metric | None = None
    """Target: the mean over held-out items that must rise. Null: `rougeL` for chats, `log_likelihood` (nats per token)
    for texts, `preference_accuracy` (the chosen answer is the likelier one) for pairs, `signed_log_likelihood` for
    answers with labels, `reward` where something judges answers (`ppo`, `grpo`)."""

    min_gain: float = Field(0.0, ge=0, le=1e6)
    """The lower end of the gain's interval must lie above this; 0.01 is one point of ROUGE, or 0.01 nats."""

    level: float = Field(0.95, gt=0.5, lt=1)
    """One-sided confidence of each decision."""

    num_resamples: int = Field(5000, ge=1000, le=1_000_000)
    """Resamples of `test: bootstrap`."""

    targets: list[TargetConfig] = Field(default_factory=list)
    """Metrics that must rise, in place of `metric` and `min_gain`."""

    targets_needed: Literal["all", "any"] = "all"
    """Of several targets, all must rise, or one is enough."""

    guards: list[GuardConfig] = Field(default_factory=list)
    """Metrics that must not fall by more than a margin."""

    correction: Literal["holm", "none"] = "holm"
    """Of several targets: `holm` holds `level` for all that is claimed together; `none` for each claim alone."""

    test: Literal["auto", "bootstrap", "mcnemar"] = "auto"
    """`auto` takes the exact McNemar test where every answer is right or wrong and any gain will do, and the test of a
    bounded mean elsewhere. `bootstrap` finds smaller gains of targets,
    and lets luck pass more often than `level` says where a few items lose much; guards never take it."""

    exclude_contaminated: bool = True
    """Leave out items that were found in the training rows; the numbers with them are shown beside."""

    preconditions: PreconditionsConfig = PreconditionsConfig()
    """What must hold of the model before its scores count."""

    def with_metric(self, measured: Sequence[str]) -> "GateConfig":
        """Return the gate with a target: where it names none, what the first of `JUDGED_BY` or of `measured` says."""
        if self.targets or self.metric or not measured:
            return self
        metric = next((name for name in JUDGED_BY if name in measured), measured[0])
        return self.model_copy(update={"metric": metric})

    def wanted(self) -> list[TargetConfig]:
        """Return the targets, whichever way they were written; none before `with_metric` where none is named."""
        if self.targets or self.metric is None:
            return self.targets
        return [TargetConfig(metric=self.metric, min_effect=self.min_gain)]

    def asked(self) -> list[tuple[str, str]]:
        """Return every metric that is asked for by name, after the key that names it."""
        named: list[tuple[str, str]] = [("metric", self.metric)] if self.metric and not self.targets else []
        named += [(f"targets.{i}.metric", target.metric) for i, target in enumerate(self.targets)]
        return named + [(f"guards.{i}.metric", guard.metric) for i, guard in enumerate(self.guards)]

    @model_validator(mode="after")
    def _targets_are_written_one_way(self) -> "GateConfig":
        # Gates that earlier releases kept beside a run have "rougeL" there, which was the default.
        if self.targets and (self.metric not in (None, "rougeL") or self.min_gain):
            raise ValueError("metric and min_gain stand beside targets, which say the same. Keep targets.")
        return self

    def repeated(self) -> str:
        """Say which metric is asked for twice; empty where none is."""
        targets, guards = ([each.metric for each in group] for group in (self.wanted(), self.guards))
        if len(set(targets)) < len(targets) or len(set(guards)) < len(guards):
            return "a metric stands twice among targets, or twice among guards. Keep one entry."
        if self.targets_needed == "all" and (both := sorted(set(targets) & set(guards))):
            return f"guards: {both[0]} is a target that must rise, so it need not be guarded. Leave it out."
        return ""

    @model_validator(mode="after")
    def _a_metric_is_asked_for_once(self) -> "GateConfig":
        if told := self.repeated():
            raise ValueError(told)
        return self

    @model_validator(mode="after")
    def _luck_is_not_tried_often(self) -> "GateConfig":
        if self.targets_needed == "any" and self.correction == "none" and len(self.targets) > 1:
            raise ValueError(
                f"correction: none with targets_needed: any gives luck {len(self.targets)} tries at level "
                f"{self.level}. Set correction: holm."
            )
        return self

    @model_validator(mode="after")
    def _mcnemar_asks_for_any_gain(self) -> "GateConfig":
        single = TargetConfig(metric=self.metric or "the target", min_effect=self.min_gain)
        for target in (self.targets or [single]) if self.test == "mcnemar" else ():
            if target.min_effect:
                raise ValueError(
                    f"test: mcnemar asks whether there is any gain, and {target.metric} is to gain more than "
                    f"{target.min_effect}. Set test: auto, or leave min_effect at 0."
                )
        return self


class RegisterConfig(Config):
    """Under which name a model is registered, and which gate it meets."""

    model_name: ModelName
    """Name in the MLflow model registry."""

    gate: GateConfig = GateConfig()
    """The gate."""
