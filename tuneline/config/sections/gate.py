"""What a gate may ask for: metrics that must rise, metrics that must not fall, and what must hold of the model itself.

A gate is written in a recipe (`registry.gate`), or in a file of its own that recipes name: `registry.gate:
gates/strict.yaml`, relative to the recipe. The file holds the same keys.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tuneline.config.base import Config, ModelName


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


MetricName = str
"""Name of something that is measured; the recipe says what that is, and refuses other names."""


DEFAULT_TARGETS = ("reward", "rougeL", "preference_accuracy", "signed_log_likelihood", "log_likelihood")
"""What a gate asks for that names no metric: the first of these that is measured."""


class GateConfig(Config):
    """What a new model must prove before it is promoted (docs/decisions/0003 and 0014)."""

    metric: MetricName | None = None
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

    def with_default_metric(self, measured: Sequence[str]) -> "GateConfig":
        """Return the gate with a target: where it names none, what the first of `JUDGED_BY` or of `measured` says."""
        if self.targets or self.metric or not measured:
            return self
        metric = next((name for name in DEFAULT_TARGETS if name in measured), measured[0])
        return self.model_copy(update={"metric": metric})

    def all_targets(self) -> list[TargetConfig]:
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
        targets, guards = ([each.metric for each in group] for group in (self.all_targets(), self.guards))
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
